"""As much HTTP/1 as a router needs: the head of one request, where its body ends, and four answers.

Pure. Used for listeners with `client_ip: xff`, where a header is only to be trusted on a request that was parsed here.
Whatever two parsers could read in two ways is refused (RFC 9112, sections 2.2, 3, 5.1, 6.1-6.3 and 11.2): the container
must never see a request that this file did not see.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

HEAD_BYTES: Final = 32 * 1024

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUEST: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_HOST: Final = re.compile(rb"[A-Za-z0-9.\-_~%!$&'()*+,;=:\[\]]*")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")

# Hop-by-hop fields that we answer for ourselves: the connection carries one request, and nothing is upgraded.
_DROPPED: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"upgrade", b"http2-settings", b"forwarded", b"x-real-ip"}
)
# Servers that put fields into environment variables read these as X-Forwarded-For too.
_FORWARDED: Final = b"x-forwarded-"


class Refused(Exception):
    """The request is not one that may be passed on. `status` is what its client is told."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Head(NamedTuple):
    """A request's head, rewritten. `used` bytes of the input were it."""

    rewritten: bytes
    used: int
    body: Length | Chunked


class Length:
    """A body of so many bytes."""

    __slots__ = ("left",)

    def __init__(self, length: int) -> None:
        self.left = length

    @property
    def done(self) -> bool:
        return self.left == 0

    def take(self, data: memoryview) -> int:
        """How many bytes of `data` belong to the body."""
        count = min(self.left, len(data))
        self.left -= count
        return count


class _At:
    """Where in the chunked coding the next byte stands."""

    SIZE, EXTENSION, SIZE_LF, DATA, DATA_CR, DATA_LF, END_CR, END_LF, DONE = range(9)


class Chunked:
    """A body in the chunked coding, followed byte by byte through its framing and in one leap through its data.

    Request trailers are refused: servers exist that read them as header fields.
    """

    __slots__ = ("_at", "_digits", "_left", "_length")

    def __init__(self) -> None:
        self._at = _At.SIZE
        self._left = 0
        self._digits = 0
        self._length = 0  # of the size line, bounded

    @property
    def done(self) -> bool:
        return self._at == _At.DONE

    def take(self, data: memoryview) -> int:
        """How many bytes of `data` belong to the body. Raises Refused for a broken coding."""
        position, end = 0, len(data)
        while position < end and self._at != _At.DONE:
            if self._at == _At.DATA:
                leap = min(self._left, end - position)
                position += leap
                self._left -= leap
                if not self._left:
                    self._at = _At.DATA_CR
                continue
            self._step(data[position])
            position += 1
        return position

    def _step(self, byte: int) -> None:
        at = self._at
        if at == _At.SIZE:
            self._size(byte)
        elif at == _At.EXTENSION:
            self._length += 1
            if byte == 0x0D:
                self._at = _At.SIZE_LF
            elif (byte < 0x20 and byte != 0x09) or self._length > 256:
                raise Refused(400, "a broken chunk extension")
        else:
            self._expect(byte, *_EXPECTED[at])
            if at == _At.SIZE_LF:
                self._at = _At.DATA if self._left else _At.END_CR
                self._digits = self._length = 0

    def _size(self, byte: int) -> None:
        digit = _HEX.get(byte)
        if digit is not None and self._digits < 15:
            self._left = self._left * 16 + digit
            self._digits += 1
        elif self._digits and byte == 0x3B:
            self._at = _At.EXTENSION
        elif self._digits and byte == 0x0D:
            self._at = _At.SIZE_LF
        else:
            raise Refused(400, "a broken chunk size")

    def _expect(self, byte: int, wanted: int, then: int) -> None:
        if byte != wanted:
            raise Refused(400, "a broken chunk or a trailer")
        self._at = then


_HEX: Final = {byte: int(chr(byte), 16) for byte in b"0123456789abcdefABCDEF"}
_EXPECTED: Final = {
    _At.SIZE_LF: (0x0A, _At.DATA),
    _At.DATA_CR: (0x0D, _At.DATA_LF),
    _At.DATA_LF: (0x0A, _At.SIZE),
    _At.END_CR: (0x0D, _At.END_LF),
    _At.END_LF: (0x0A, _At.DONE),
}


def rewrite(data: bytes, client: str, proto: str = "http") -> Head | None:
    """The head at the start of `data` with the client's address in it; None while it is not complete.

    Every X-Forwarded-* of the client is dropped, ours are added, and `Connection: close` makes it the only request of
    its connection. Raises Refused.
    """
    skipped = len(data) - len(data.lstrip(b"\r\n"))  # RFC 9112, 2.2: empty lines before a request are ignored
    end = data.find(b"\r\n\r\n", skipped)
    if end < 0:
        if len(data) > HEAD_BYTES:
            raise Refused(431, "the request head is longer than 32 KiB")
        if re.search(rb"[^\r]\n|\x00", data[skipped:]):
            raise Refused(400, "a line that does not end in CR LF")
        return None
    if end > HEAD_BYTES:
        raise Refused(431, "the request head is longer than 32 KiB")
    first, *lines = data[skipped:end].split(b"\r\n")
    request = _REQUEST.fullmatch(first)
    if request is None:
        raise Refused(400, "this is not a request line of HTTP/1.0 or HTTP/1.1")
    fields = [_field(line) for line in lines]
    _no_disguises(fields)
    host = _host(fields, http_11=request[3] == b"1")
    _same_host(request[2], host)
    body = _framing(fields, http_11=request[3] == b"1")
    kept = [name + b": " + value for name, value in fields if not _is_dropped(name)]
    ours = [b"X-Forwarded-For: " + client.encode(), b"X-Forwarded-Proto: " + proto.encode()]
    ours += [b"X-Forwarded-Host: " + host] if host else []
    rewritten = b"\r\n".join([first, *kept, *ours, b"Connection: close", b"", b""])
    return Head(rewritten, end + 4, body)


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    # No space before the colon, no folded line, no bare CR or LF: the classics of smuggling.
    if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
        raise Refused(400, "a header field that could be read in two ways")
    return name, value.strip(b" \t")


def _is_dropped(name: bytes) -> bool:
    plain = name.lower().replace(b"_", b"-")
    return plain in _DROPPED or plain.startswith(_FORWARDED)


def _values(fields: list[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [value for name, value in fields if name.lower() == wanted]


def _no_disguises(fields: list[tuple[bytes, bytes]]) -> None:
    """`Content_Length` is a length to some servers and nothing to others."""
    for name, _ in fields:
        if b"_" in name and name.lower().replace(b"_", b"-") in (b"content-length", b"transfer-encoding", b"host"):
            raise Refused(400, "a header field that could be read in two ways")


def _same_host(target: bytes, host: bytes) -> None:
    """A target in absolute form names the host a second time."""
    scheme, separator, rest = target.partition(b"://")
    if separator and b"/" not in scheme and rest.partition(b"/")[0].partition(b"?")[0].lower() != host.lower():
        raise Refused(400, "two different hosts")


def _host(fields: list[tuple[bytes, bytes]], *, http_11: bool) -> bytes:
    hosts = _values(fields, b"host")
    if len(hosts) > 1 or (http_11 and not hosts) or not all(_HOST.fullmatch(host) for host in hosts):
        raise Refused(400, "no host, several, or a broken one")
    return hosts[0] if hosts else b""


def _framing(fields: list[tuple[bytes, bytes]], *, http_11: bool) -> Length | Chunked:
    lengths = _values(fields, b"content-length")
    codings = _values(fields, b"transfer-encoding")
    if codings:
        if lengths or len(codings) > 1 or not http_11 or codings[0].lower() != b"chunked":
            raise Refused(400, "a body whose end could be read in two ways")
        return Chunked()
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(length) for length in lengths):
        raise Refused(400, "a body whose end could be read in two ways")
    return Length(int(lengths[0]) if lengths else 0)


_PHRASES: Final = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def answer(status: int, reason: str, retry_after_s: int = 0) -> bytes:
    """A whole response for a client that is not served."""
    text = reason.encode() + b"\n"
    retry = f"Retry-After: {retry_after_s}\r\n" if retry_after_s else ""
    head = (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(text)}\r\n{retry}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + text

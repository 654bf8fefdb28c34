"""One TLS connection between two routers, with the face of a socket: the pump moves bytes through it as through any other.

TLS works in memory here and the socket is read and written in large pieces: a record costs no system call of its own, and what
is encrypted and not yet sent is in our hands, so that a peer that does not read is felt as of any socket.
"""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Final

from services.router.tunnel.wire import FRAME_BYTES, HEAD

# What fits into one TLS record together with its head is copied behind it; a second record costs more.
_HEAD_BYTES: Final = HEAD.size
_JOINED_BYTES: Final = 16384 - _HEAD_BYTES
_END: Final = HEAD.pack(0)
_RECORD_BYTES: Final = 16384  # of what is inside, at most (RFC 8446, 5.1)
_NO_FRAME: Final = "the other node sent what is no frame"


class Tunnel:
    """`rest` is what is encrypted and waits for the socket; `more` says that a short read was not the last one.

    ssl.SSLError is an OSError: what breaks inside TLS breaks the tunnel like a reset.
    """

    __slots__ = (
        "_behind", "_ended", "_head", "_incoming", "_left", "_outgoing", "_said_end", "_ssl", "_words", "fd", "more", "rest",
        "sock", "tls",
    )  # fmt: skip

    def __init__(
        self, sock: socket.SocketType, fd: int, context: ssl.SSLContext, *, server: bool, session: ssl.SSLSession | None = None
    ) -> None:
        self.sock = sock
        self.fd = fd
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server, session=session)
        # The public class around it costs a call more for each record.
        self._ssl = self.tls._sslobj  # type: ignore[attr-defined]
        self.rest = b""
        self.more = False
        self._head = b""
        self._left = 0  # of the frame that is being read
        self._words = b""  # of a frame that is not whole yet
        self._behind = True  # what has come and can be read is not all read
        self._ended = False
        self._said_end = False

    # --- before there is a client

    def handshake(self, buffer: memoryview) -> bool:
        """Goes as far as what has come allows. True: it is done. Raises OSError; the other side is told why."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.push()
                if not self._pull(buffer):
                    return False
            except ssl.SSLError:
                self.push()
                raise
            else:
                self.push()
                return True

    def say(self, words: bytes) -> bool:
        """One frame. False: some of it waits in `rest`. Raises OSError."""
        self.tls.write(HEAD.pack(len(words)) + words)
        return self.push()

    def hear(self, buffer: memoryview, most_bytes: int) -> bytes | None:
        """One whole frame; None: not yet. Raises OSError, also for one that is longer than `most_bytes`."""
        while True:
            try:
                while self._left or self._begin_frame(most_bytes):
                    part = self.tls.read(self._left)
                    if not part:
                        raise _broken()
                    self._words += part
                    self._left -= len(part)
                    if not self._left:
                        words, self._words = self._words, b""
                        return words
                raise _broken()  # its end, and no frame before it
            except ssl.SSLWantReadError:
                if not self._pull(buffer):
                    return None

    @property
    def is_spoken_to(self) -> bool:
        """Whether a frame has begun and is not whole."""
        return bool(self._head or self._left or self._words)

    # --- the face of a socket

    def recv_into(self, buffer: memoryview, /) -> int:
        """How many bytes of the client; 0: the other side has ended its direction. Raises BlockingIOError, OSError."""
        filled, size, short = 0, len(buffer), False
        if self._behind:
            filled = self._decrypt(buffer, 0)
        while size - filled > _HEAD_BYTES and not self._ended:
            if short and filled:
                self.more = False
                return filled
            room = buffer[filled:] if filled else buffer
            try:
                count = self.sock.recv_into(room)
            except BlockingIOError:
                if not filled:
                    raise
                self.more = False
                return filled
            if not count:
                if filled:
                    break
                raise _broken()
            self._incoming.write(room[:count])
            short = count < size - filled
            filled = self._decrypt(buffer, filled)
        self.more = True
        return filled

    def send(self, data: bytes | memoryview, /) -> int:
        """Takes all of it. Less than its length: some waits in `rest`, and nothing may be sent before that. Raises OSError."""
        count = len(data)
        if count <= _JOINED_BYTES:
            self._ssl.write(HEAD.pack(count) + data)
        else:
            self._ssl.write(HEAD.pack(count))
            self._ssl.write(data)
        out = self._outgoing.read()
        try:
            sent = self.sock.send(out)
        except BlockingIOError:
            sent = 0
        if sent == len(out):
            return count
        self.rest = out[sent:]
        return -1

    def end(self) -> bool:
        """Ends our direction, once. False: that waits in `rest`. Raises OSError."""
        if not self._said_end:
            self._said_end = True
            self.tls.write(_END)
        return self.push()

    def take_rest(self) -> memoryview:
        rest, self.rest = self.rest, b""
        return memoryview(rest)

    def shutdown(self, how: int, /) -> None:
        self.sock.shutdown(how)

    def getsockname(self) -> tuple[str, int]:
        name: tuple[str, int] = self.sock.getsockname()
        return name

    def getsockopt(self, level: int, option: int, /) -> int:
        return self.sock.getsockopt(level, option)

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        self.sock.setsockopt(level, option, value)

    def close(self) -> None:
        self.sock.close()

    def push(self) -> bool:
        """Writes what is encrypted. False: some waits in `rest`. Raises OSError."""
        out = self._outgoing.read()
        if self.rest:
            out = self.rest + out
        if not out:
            return True
        try:
            sent = self.sock.send(out)
        except BlockingIOError:
            sent = 0
        self.rest = out[sent:]
        return not self.rest

    # --- inside

    def _pull(self, buffer: memoryview) -> bool:
        """Takes what has come. False: nothing more for now."""
        try:
            count = self.sock.recv_into(buffer)
        except BlockingIOError:
            return False
        if not count:
            raise _broken()
        self._incoming.write(buffer[:count])
        return True

    def _decrypt(self, buffer: memoryview, filled: int) -> int:
        """Fills `buffer` from what has come, as far as that reaches. A frame's head is read with the rest of its record."""
        size, whole = len(buffer), True
        try:
            while (room := size - filled) > _HEAD_BYTES:
                at = buffer[filled:] if filled else buffer
                if left := self._left:
                    count = self._ssl.read(min(left, room), at)
                    if not count:
                        raise _broken()
                    self._left = left - count
                else:
                    count = self._ssl.read(room, at) - _HEAD_BYTES
                    if count < 0:
                        raise _broken()
                    (left,) = HEAD.unpack_from(at)
                    if left > FRAME_BYTES or count > left:
                        raise OSError(errno.EPROTO, _NO_FRAME)
                    if not left:
                        self._ended = True
                        break
                    at[:count] = at[_HEAD_BYTES : count + _HEAD_BYTES]
                    self._left = left - count
                filled += count
                # Asking in vain costs an exception. A read that had room for a record leaves nothing of it.
                whole = room >= _RECORD_BYTES
                if whole and not self._incoming.pending:
                    self._behind = False
                    return filled
        except ssl.SSLWantReadError:
            whole = True
        self._behind = not whole or size - filled <= _HEAD_BYTES
        return filled

    def _begin_frame(self, most_bytes: int) -> bool:
        """Reads a frame's head. False: it is the end of the direction. Raises OSError, ssl.SSLWantReadError."""
        while len(self._head) < _HEAD_BYTES:
            part = self.tls.read(_HEAD_BYTES - len(self._head))
            if not part:
                raise _broken()
            self._head += part
        (self._left,) = HEAD.unpack(self._head)
        self._head = b""
        if self._left > most_bytes:
            raise OSError(errno.EPROTO, _NO_FRAME)
        return self._left > 0


def _broken() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, "the other node broke the tunnel")

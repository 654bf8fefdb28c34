"""The call of a node that is nobody yet: one POST to a member, whose authority the join token names. Blocking."""

from __future__ import annotations

import http.client
import socket
import ssl
from typing import Final

import msgspec

from piccolod.config import at_port
from piccolod.errors import DeadlineExceeded, Forbidden, Invalid, OutcomeUnknown, Unavailable, from_problem
from piccolod.pki import channel
from piccolod.protocol.joining import JOIN_PATH, JoinBody

_CONNECT_S: Final = 5.0
_ANSWER_BYTES: Final = 1 << 20
_AGAIN: Final = "it may have let this node in: join again with the same token, which goes on where this ended"


def place(address: str, default_port: int) -> tuple[str, int]:
    """`HOST`, `HOST:PORT`, `[V6]:PORT` or a bare IPv6 address. Raises Invalid."""
    text = address.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = text, str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535 or "/" in host:
        raise Invalid(f"{address[:100]!r} is not HOST or HOST:PORT", hint="the address of a member, as `cluster list` shows it")
    return host, int(port)


def knock(host: str, port: int, fingerprint: str, body: JoinBody, within_s: float) -> bytes:
    """The answer's body. Raises what the member refused; Forbidden when it is of another cluster than the token.

    Nothing is sent before the other side has proven that the authority of the token signed it. Unavailable: nothing was sent.
    OutcomeUnknown, DeadlineExceeded: it was asked, and may have let this node in; the same again, with the same key, gets the
    same answer.
    """
    where = at_port(host, port)
    sent = False
    connection = _Pinned(host, port, channel.pinned_context(fingerprint), within_s)
    try:
        connection.connect()
        sent = True
        connection.request("POST", JOIN_PATH, msgspec.json.encode(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read(_ANSWER_BYTES)
    except ssl.SSLCertVerificationError as error:
        raise Forbidden(
            f"{where}: {error.strerror or error}",
            hint="check the address; if it is right, somebody else answers there",
        ) from None
    except (OSError, http.client.HTTPException) as error:  # TimeoutError is one
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        if not sent:
            raise Unavailable(
                f"{where} cannot be reached: {text}", hint="see that its piccolod runs and that no firewall is between you"
            ) from error
        if isinstance(error, TimeoutError):
            raise DeadlineExceeded(f"{where} did not answer within {within_s:g} s", hint=_AGAIN) from None
        raise OutcomeUnknown(f"{where} was asked and its answer did not come: {text}", hint=_AGAIN) from error
    finally:
        connection.close()
    if response.status != 200:
        raise from_problem(response.status, answer, where)
    return answer


class _Pinned(http.client.HTTPConnection):
    def __init__(self, host: str, port: int, tls: ssl.SSLContext, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._tls = tls

    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), timeout=_CONNECT_S)
        try:
            self.sock = self._tls.wrap_socket(plain)
        except BaseException:
            plain.close()
            raise
        self.sock.settimeout(self.timeout)

"""One connection of a client: uvicorn's HTTP/1.1, with the peer's credentials, and cut when it is slow.

What a client can do with time: send its head or its body drop by drop, or not read the answer. Each has its limit.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
import sys
from typing import Any, Final

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from piccolod import clock
from piccolod.errors import Invalid, PiccoloError, Unavailable
from services.api import problem
from services.api.origin import Peer

_PEER: Final = struct.Struct("3i")
HEAD_BYTES: Final = 32 * 1024
_HEAD_S: Final = 10.0  # from the first byte of a request, or from the connection, to the end of its head
_BODY_SILENCE_S: Final = 20.0
_BODY_GRACE_S: Final = 30.0
_BODY_BYTES_PER_S: Final = 1024  # after the grace: 64 KiB in a minute
_WRITE_S: Final = 30.0  # that a client does not read


class Book:
    """The connections of one listener, and how many it takes, in all and from one address."""

    def __init__(self, most: int, most_per_client: int) -> None:
        self.most = most
        self.most_per_client = most_per_client
        self.state = ServerState()
        self.by_client: dict[str, int] = {}
        self.closing = False  # one call each, and no more
        self.closed = False  # a connection whose accept was under way then is cut as it comes

    def cut_slow(self) -> int:
        now = clock.now()
        slow = [each for each in self.state.connections if isinstance(each, Connection) and each.too_slow(now)]
        for each in slow:
            each.transport.abort()
        return len(slow)


class Connection(H11Protocol):
    def __init__(self, config: Config, book: Book) -> None:
        super().__init__(config, book.state, {})
        self._book = book
        self._address = ""
        self._head_at: float | None = clock.now()
        self._body_at = self._request_at = 0.0
        self._body_bytes = 0
        self._asked = False
        self._stuck_at: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = _peer_of(transport)
        if peer is not None:
            self.app_state = {"peer": peer}
        elif (tls := transport.get_extra_info("ssl_object")) is not None:
            self.app_state = {"tls": tls}
        self._address = self.client[0] if self.client else ""
        count = self._book.by_client[self._address] = self._book.by_client.get(self._address, 0) + 1
        if len(self.connections) > self._book.most or (self._address and count > self._book.most_per_client):
            self._refuse()
        elif self._book.closed:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        left = self._book.by_client.get(self._address, 0) - 1
        if left > 0:
            self._book.by_client[self._address] = left
        else:
            self._book.by_client.pop(self._address, None)

    def data_received(self, data: bytes) -> None:
        now = clock.now()
        if self._idle() and self._head_at is None:
            self._head_at = now
        before = self.cycle
        self._body_at = now
        self._body_bytes += len(data)
        super().data_received(data)
        if self.cycle is not before:
            self._head_at, self._request_at, self._body_bytes = None, now, 0
            self._asked = True
            if self._book.closing:
                self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """A connection that has asked nothing yet may do so once: its first request may be on its way, and would be lost."""
        if self._asked or self._book.closed:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck_at = clock.now()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stuck_at = None

    def too_slow(self, now: float) -> bool:
        if self._stuck_at is not None and now - self._stuck_at > _WRITE_S:
            return True
        if self._idle():
            return self._head_at is not None and now - self._head_at > _HEAD_S
        if not self.cycle.more_body or self.flow.read_paused:
            return False  # it is our turn
        took_s = now - self._request_at
        drips = took_s > _BODY_GRACE_S and self._body_bytes < _BODY_BYTES_PER_S * took_s
        return drips or now - self._body_at > _BODY_SILENCE_S

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets a problem document all the same. Called while h11's error is being handled."""
        cause = sys.exception()
        error: PiccoloError = Invalid(f"this is no HTTP request: {msg}")
        if isinstance(cause, h11.RemoteProtocolError) and cause.error_status_hint == problem.HeadTooLarge.status:
            error = problem.HeadTooLarge(problem.HEAD_TOO_LARGE)
        self._send_whole(error.status, problem.encode(error, secrets.token_hex(8)), {})

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self) -> None:
        error = Unavailable("too many connections", hint="close some", retry_after_s=2.0)
        self._send_whole(503, problem.encode(error, secrets.token_hex(8)), problem.headers(error))

    def _send_whole(self, status: int, body: bytes, more: dict[str, str]) -> None:
        headers = [("content-type", problem.MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
        try:
            start = self.conn.send(h11.Response(status_code=status, headers=[*headers, *more.items()]))
            rest = [self.conn.send(h11.Data(data=body)), self.conn.send(h11.EndOfMessage())]
            self.transport.write(b"".join(part for part in (start, *rest) if part))
        except h11.LocalProtocolError:
            pass  # an answer is on its way already: it ends here
        self.transport.close()


def _peer_of(transport: asyncio.Transport) -> Peer | None:
    """Who is at the other end of a unix socket, as the kernel says."""
    sock: Any = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    pid, uid, _gid = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return Peer(pid, uid)

"""Serves an ASGI app on listening sockets that the supervisor keeps. No lifespan, no signals, no reloading: those are ours."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from uvicorn.config import Config

from piccolod import clock
from piccolod.errors import Invalid
from services.api.connection import HEAD_BYTES, Book, Connection

_UNIX_CONNECTIONS: Final = 128
_TCP_CONNECTIONS: Final = 512
_TCP_CONNECTIONS_PER_CLIENT: Final = 128
_KEEP_ALIVE_S: Final = 30
_HANDSHAKE_S: Final = 10.0
_SWEEP_S: Final = 1.0
# What was accepted as we stop has sent its request by then, or says nothing.
_FIRST_CALL_S: Final = 0.1
_LOOK_S: Final = 0.01
_BACKLOG: Final = 512


class Server:
    def __init__(self, app: Callable[..., Any]) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a client's garbage is no warning
        self._config = Config(
            app, http="h11", ws="none", lifespan="off", interface="asgi3", log_config=None, access_log=False,
            proxy_headers=False, server_header=False, date_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S, h11_max_incomplete_event_size=HEAD_BYTES,
        )  # fmt: skip
        self._config.load()
        self._books: list[Book] = []
        self._servers: list[asyncio.Server] = []
        self._sweep: asyncio.TimerHandle | None = None

    async def serve(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        unix = sock.family == socket.AF_UNIX
        book = Book(_UNIX_CONNECTIONS, _UNIX_CONNECTIONS) if unix else Book(_TCP_CONNECTIONS, _TCP_CONNECTIONS_PER_CLIENT)
        self._books.append(book)
        self._servers.append(
            await asyncio.get_running_loop().create_server(
                lambda: self._connection(book),
                sock=sock,
                ssl=tls,
                ssl_handshake_timeout=_HANDSHAKE_S if tls else None,
                backlog=_BACKLOG,
            )
        )

    async def close(self, grace_s: float) -> None:
        """Takes no more connections; calls under way may end within `grace_s`. The sockets stay with the supervisor."""
        if self._sweep is not None:
            self._sweep.cancel()
        for server in self._servers:
            server.close()
        for book in self._books:
            book.closing = True
        for each in self._connections():
            each.shutdown()
        give_up_at = clock.now() + grace_s
        silent_until = clock.now() + min(grace_s, _FIRST_CALL_S)
        await self._gone(silent_until)
        for book in self._books:
            book.closed = True
        for each in self._connections():
            each.shutdown()
        await self._gone(give_up_at)
        for each in self._connections():
            each.transport.abort()

    async def _gone(self, until: float) -> None:
        """Until all connections have ended, or the time is over."""
        await asyncio.sleep(_LOOK_S)  # what was just accepted becomes a connection in a later turn
        while self._connections() and clock.now() < until:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)

    def _connection(self, book: Book) -> Connection:
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(_SWEEP_S, self._cut_slow)
        return Connection(self._config, book)

    def _cut_slow(self) -> None:
        """Runs only while somebody is connected: an idle node does not wake."""
        for book in self._books:
            book.cut_slow()
        self._sweep = (
            asyncio.get_running_loop().call_later(_SWEEP_S, self._cut_slow) if self._connections() else None
        )  # fmt: skip

    def _connections(self) -> list[Connection]:
        return [each for book in self._books for each in book.state.connections if isinstance(each, Connection)]


def tls_context(cert: str, key: str) -> ssl.SSLContext:
    """Raises Invalid, naming the files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:  # ssl.SSLError is one
        raise Invalid(
            f"no TLS with the certificate {cert} and the key {key}: {error.strerror or error}",
            hint="check api.cert and api.key, and who may read them",
        ) from error
    context.set_alpn_protocols(["http/1.1"])
    return context

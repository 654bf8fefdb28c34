"""One call to one node of the cluster: a connection of its own, and the proof of who answers before anything is sent."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import h11

from piccolod.errors import OutcomeUnknown, PiccoloError, TooLarge, Unavailable, from_problem
from piccolod.pki import channel
from piccolod.pki.identity import Role
from services.api.rpc.files import NodeFiles

CONNECT_S: Final = 2.0
_READ_BYTES: Final = 64 * 1024
_SILENCE_S: Final = 30.0
_GONE_MS: Final = 20_000
_PROBLEM_BYTES: Final = 64 * 1024


class Place(NamedTuple):
    """A node, and where its rpc is."""

    node: str
    host: str
    port: int


class Answer(NamedTuple):
    """`size_bytes` None: the other node did not say."""

    size_bytes: int | None
    parts: AsyncIterator[bytes]


class Client:
    def __init__(self, files: NodeFiles, cluster: str) -> None:
        self._files = files
        self._cluster = cluster

    async def post(
        self, place: Place, path: str, body: bytes, media_type: str, *, timeout_s: float, most_bytes: int, ended: bool = False
    ) -> bytes:
        """The body of the answer. Raises Unavailable when nothing was sent, OutcomeUnknown when the end is not known,
        and what the other node refused it with. `ended`: a certificate of it that has ended is no hindrance.
        """
        async with self.fetch(place, path, body, media_type, within_s=timeout_s, ended=ended) as answer:
            return await _whole(answer.parts, most_bytes)

    @asynccontextmanager
    async def fetch(
        self,
        place: Place,
        path: str,
        body: bytes,
        media_type: str,
        *,
        within_s: float | None = None,
        begins_s: float | None = None,
        ended: bool = False,
    ) -> AsyncIterator[Answer]:
        """As `post`, and the block reads the body in parts. `within_s`: for all of it, `begins_s`: until its head is here.

        A machine that is gone is found out within some 20 s, and one that has begun and falls silent within 30 s.
        """
        sent = False
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(place.host, place.port, ssl=self._files.client(ended=ended))
            self._check(writer, place, ended)
            _keep_alive(writer)
            async with asyncio.timeout(within_s):
                sent = True
                exchange = _Exchange(reader, writer)
                async with asyncio.timeout(begins_s):
                    status, size_bytes = await exchange.ask(_request(place, path, body, media_type), body)
                if status != 200:
                    raise from_problem(status, await _whole(exchange.parts(), _PROBLEM_BYTES))
                yield Answer(size_bytes, exchange.parts())
        except ssl.SSLError as error:
            # Also after the request was sent: in TLS 1.3 the server looks at our certificate only then, and at the rest later.
            raise Unavailable(f"{place.node} and this node do not trust each other: {error.reason or error}") from error
        except (OSError, EOFError, h11.RemoteProtocolError) as error:  # TimeoutError is an OSError
            why = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
            if sent:
                raise OutcomeUnknown(
                    f"{place.node} was asked and its answer did not come: {why}", hint="look before it is repeated"
                ) from error
            raise Unavailable(f"{place.node} cannot be reached: {why}", hint="see `piccoloctl cluster list`") from error
        finally:
            if writer is not None:
                writer.transport.abort()

    def _check(self, writer: asyncio.StreamWriter, place: Place, ended: bool) -> None:
        tls = writer.get_extra_info("ssl_object")
        try:
            found = channel.ended_peer(tls)[0] if ended else channel.peer(tls)
            found.admitted(self._cluster, Role.MEMBER)
        except PiccoloError as error:
            raise Unavailable(f"{place.node} cannot be asked: {error.detail}", hint=error.hint) from error
        if found.node != place.node:
            raise Unavailable(f"{found.node} answers where {place.node} should be", hint="see `piccoloctl cluster list`")


def _request(place: Place, path: str, body: bytes, media_type: str) -> h11.Request:
    headers = [
        ("Host", place.node), ("Content-Type", media_type), ("Content-Length", str(len(body))), ("Connection", "close"),
    ]  # fmt: skip
    return h11.Request(method="POST", target=path, headers=headers)


class _Exchange:
    """One request and its answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._reader = reader
        self._writer = writer

    async def ask(self, request: h11.Request, body: bytes) -> tuple[int, int | None]:
        """The status, and how large the answer says that its body is."""
        sent: tuple[h11.Event, ...] = (request, h11.Data(data=body), h11.EndOfMessage())
        self._writer.write(b"".join(self._http.send(part) or b"" for part in sent))
        await self._writer.drain()
        while not isinstance(event := await self._next(), h11.Response):
            pass
        size = dict(event.headers).get(b"content-length")
        return event.status_code, None if size is None else int(size)

    async def parts(self) -> AsyncIterator[bytes]:
        while not isinstance(event := await self._next(_SILENCE_S), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    async def _next(self, silence_s: float | None = None) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            async with asyncio.timeout(silence_s):
                self._http.receive_data(await self._reader.read(_READ_BYTES))
        if isinstance(event, h11.ConnectionClosed):
            raise EOFError("the connection was cut")
        return event


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3), (socket.TCP_USER_TIMEOUT, _GONE_MS),
    ):  # fmt: skip
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def _whole(parts: AsyncIterator[bytes], most_bytes: int) -> bytes:
    answer = bytearray()
    async for part in parts:
        answer += part
        if len(answer) > most_bytes:
            raise TooLarge("the answer of the other node is too large")
    return bytes(answer)

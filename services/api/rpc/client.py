"""One call to one node of the cluster: a connection of its own, and the proof of who answers before anything is sent."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, NamedTuple

import h11

from piccolod.errors import OutcomeUnknown, PiccoloError, TooLarge, Unavailable, from_problem
from piccolod.pki import channel
from piccolod.pki.identity import Role
from services.api.rpc.files import NodeFiles

CONNECT_S: Final = 2.0
_READ_BYTES: Final = 64 * 1024


class Place(NamedTuple):
    """A node, and where its rpc is."""

    node: str
    host: str
    port: int


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
        sent = False
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(place.host, place.port, ssl=self._files.client(ended=ended))
            self._check(writer, place, ended)
            async with asyncio.timeout(timeout_s):
                sent = True
                status, answer = await _round(reader, writer, _request(place, path, body, media_type), body, most_bytes)
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
        if status != 200:
            raise from_problem(status, answer)
        return answer

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


async def _round(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: h11.Request, body: bytes, most_bytes: int
) -> tuple[int, bytes]:
    http = h11.Connection(h11.CLIENT)
    sent: tuple[h11.Event, ...] = (request, h11.Data(data=body), h11.EndOfMessage())
    writer.write(b"".join(http.send(part) or b"" for part in sent))
    await writer.drain()
    status, answer = 0, bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            answer += event.data
            if len(answer) > most_bytes:
                raise TooLarge("the answer of the other node is too large")
        elif isinstance(event, h11.EndOfMessage):
            return status, bytes(answer)
        elif isinstance(event, h11.ConnectionClosed):
            raise EOFError("the connection was cut")

"""The routes of the rpc server as one small ASGI application: who may call which, how large, how long, and how it fails.

No framework around it: a few routes, bytes in and bytes or a file out. Failures are the same problem documents as the API's.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from piccolod.errors import DeadlineExceeded, Failed, Locked, NotFound, NotSupported, PiccoloError, TooLarge
from piccolod.pki import channel
from piccolod.pki.identity import Identity, Role
from piccolod.protocol.events import Audit
from piccolod.protocol.joining import CheckNode
from services.api import problem
from services.api.core import Core

_READ_BYTES: Final = 8 << 20
_PART_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Knock:
    """One call. `peer` None: no certificate was shown. `key`: SHA-256 of the public key of the peer's."""

    source: str
    peer: Identity | None
    key: str
    body: bytes
    request_id: str


@dataclass(frozen=True, slots=True)
class Route:
    """`roles` empty: also without a certificate. `ended`: also with one that has ended.

    `answer`: the body, or a file that is there until it was sent, however that ends.
    """

    answer: Callable[[Knock], Awaitable[bytes] | AbstractAsyncContextManager[Path]]
    media_type: str
    body_bytes: int
    within_s: float
    roles: tuple[Role, ...] = ()
    ended: bool = False
    audited: bool = True


class App:
    def __init__(self, core: Core, cluster: str, routes: dict[str, Route]) -> None:
        self._core = core
        self._cluster = cluster
        self._routes = routes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request_id = secrets.token_hex(8)
        route = self._routes.get(scope["path"]) if scope["method"] == "POST" else None
        async with AsyncExitStack() as held:
            try:
                if route is None:
                    raise NotSupported("there is no such call between nodes", hint="is one of the nodes older than the other?")
                knock = await self._knock(route, scope, receive, request_id)
                async with asyncio.timeout(route.within_s):
                    body = await _answer(route, knock, held)
            except TimeoutError:
                await self._refuse(scope, send, route, request_id, DeadlineExceeded("it took too long", hint="try again"))
            except PiccoloError as error:
                await self._refuse(scope, send, route, request_id, error)
            except Exception:
                self._core.log.error(
                    "failed a call of a node by a bug",
                    path=scope["path"],
                    request_id=request_id,
                    traceback=traceback.format_exc(),
                )
                ours = Failed("the call failed by a mistake of ours", hint="see the log of the module `api` there")
                await self._refuse(scope, send, route, request_id, ours)
            else:
                self._audit(scope, route, request_id, 200, "")
                headers = {"content-type": route.media_type}
                await (_send(send, 200, body, headers) if isinstance(body, bytes) else _send_file(send, body, headers))

    async def _knock(self, route: Route, scope: Any, receive: Any, request_id: str) -> Knock:
        tls = scope["state"].get("tls")
        peer, key = None, ""
        if route.roles or (tls is not None and tls.getpeercert()):
            found = channel.ended_peer(tls)[0] if route.ended else channel.peer(tls)
            peer = found.admitted(self._cluster, *(route.roles or tuple(Role)))
            key = channel.peer_key(tls)
            if not route.ended:
                await self._check_listed(peer, key)
        source = scope["client"][0] if scope.get("client") else ""
        return Knock(source, peer, key, await _body(receive, route.body_bytes), request_id)

    async def _check_listed(self, peer: Identity, key: str) -> None:
        """What was removed counts no more, however long its certificate lasts. A locked node knows no list, and refuses."""
        try:
            await self._core.ask(CheckNode(node=peer.node, key=key))
        except Locked:
            raise Locked(f"{self._core.config.node.name} is locked", hint="unlock it, or ask another node") from None

    async def _refuse(self, scope: Any, send: Any, route: Route | None, request_id: str, error: PiccoloError) -> None:
        self._audit(scope, route, request_id, error.status, error.code)
        headers = {"content-type": problem.MEDIA_TYPE, **problem.headers(error)}
        await _send(send, error.status, problem.encode(error, request_id), headers)

    def _audit(self, scope: Any, route: Route | None, request_id: str, status: int, code: str) -> None:
        """A call that leaves its trace elsewhere (`audited` False) is told of only when it was refused."""
        if route is None or (not route.audited and (status == 200 or code == NotFound.code)):
            return
        who = _named(scope["state"].get("tls"))
        source = scope["client"][0] if scope.get("client") else "unknown"
        self._core.module.publish(
            Audit(actor=who, source=source, action=f"POST rpc{scope['path']}", status=status, code=code, request_id=request_id)
        )


async def _answer(route: Route, knock: Knock, held: AsyncExitStack) -> bytes | BinaryIO:
    answer = route.answer(knock)
    if not isinstance(answer, AbstractAsyncContextManager):
        return await answer
    file = await held.enter_async_context(answer)
    return held.enter_context(await asyncio.to_thread(file.open, "rb"))


def _named(tls: Any) -> str:
    try:
        return f"node:{channel.ended_peer(tls)[0].node}"
    except PiccoloError:
        return "nobody"


async def _body(receive: Any, most_bytes: int) -> bytes:
    """One that is too large is read on for a while and thrown away: who still sends when we close may not see the answer."""
    body, size_bytes = bytearray(), 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Failed("the caller went away", hint="try again")
        part = message.get("body", b"")
        size_bytes += len(part)
        if size_bytes <= most_bytes:
            body += part
        if not message.get("more_body", False) or size_bytes > _READ_BYTES:
            break
    if size_bytes > most_bytes:
        raise TooLarge(f"a call of this kind has at most {most_bytes} bytes", hint="is the other node a newer piccolod?")
    return bytes(body)


async def _send(send: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    await _begin(send, status, len(body), headers)
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _send_file(send: Any, file: BinaryIO, headers: dict[str, str]) -> None:
    """What fails now cuts the connection: the length was said, so nobody takes a part for the whole."""
    left_bytes = os.fstat(file.fileno()).st_size
    await _begin(send, 200, left_bytes, headers)
    while left_bytes > 0:
        part = await asyncio.to_thread(file.read, min(left_bytes, _PART_BYTES))
        left_bytes = left_bytes - len(part) if part else -1
        await send({"type": "http.response.body", "body": part, "more_body": left_bytes > 0})


async def _begin(send: Any, status: int, size_bytes: int, headers: dict[str, str]) -> None:
    fields = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    fields += [(b"content-length", str(size_bytes).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": fields})

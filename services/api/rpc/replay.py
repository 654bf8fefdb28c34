"""POST /forward: a request of another node's API, answered here as if it had come to this one."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from litestar.types import ASGIApp

from piccolod.errors import Failed, Forbidden, Invalid, TooLarge
from piccolod.pki.identity import Role
from services.api import settings
from services.api.call import Via
from services.api.core import Core
from services.api.rpc.app import Knock, Route
from services.api.rpc.wire import ANSWER_BYTES, BODY_BYTES, MEDIA_TYPE, Answered, Forwarded, decoded

# A header and the frame around a body of BODY_BYTES.
_ROOM_BYTES: Final = 64 * 1024
_WITHIN_S: Final = 61.0
_METHODS: Final = frozenset({"POST", "PUT", "DELETE", "PATCH"})
_REQUEST_ID: Final = re.compile(r"[0-9a-f]{1,32}")


class Replay:
    def __init__(self, core: Core, edge: ASGIApp) -> None:
        self._core = core
        self._edge = edge

    @property
    def route(self) -> Route:
        """The edge audits what it answers."""
        return Route(
            self._forward, MEDIA_TYPE, BODY_BYTES + _ROOM_BYTES, _WITHIN_S, roles=(Role.MEMBER,), audited=False
        )  # fmt: skip

    async def _forward(self, knock: Knock) -> bytes:
        asked = _decoded(knock.body)
        if knock.peer is None:
            raise Forbidden("this is for members of the cluster", hint="show the certificate of a member")
        if asked.as_root:
            await settings.check_admin(self._core, knock.peer.node)
        answer = _Answer()
        via = Via(node=knock.peer.node, as_root=asked.as_root, source=asked.source, secure=asked.secure)
        await self._edge(_scope(asked, via), _Body(asked.body, self._core), answer.send)  # type: ignore[arg-type]
        return msgspec.msgpack.encode(answer.whole())


class _Body:
    """What an application receives: the body whole, then nothing more until this node stops."""

    def __init__(self, body: bytes, core: Core) -> None:
        self._body: bytes | None = body
        self._core = core

    async def __call__(self) -> Any:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._core.closing.wait()
        return {"type": "http.disconnect"}


class _Answer:
    def __init__(self) -> None:
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = bytearray()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message["headers"])
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if len(self._body) > ANSWER_BYTES:
                raise TooLarge("the answer is too large to be forwarded", hint="ask the node that leads")

    def whole(self) -> Answered:
        if not self._status:
            raise Failed("the request had no answer", hint="see the log of the module `api` on the node that leads")
        return Answered(status=self._status, headers=self._headers, body=bytes(self._body))


def _decoded(body: bytes) -> Forwarded:
    asked = decoded(body, Forwarded, "forwarded request", msgspec.msgpack.decode)
    if asked.method not in _METHODS or not asked.path.startswith("/api/") or not _REQUEST_ID.fullmatch(asked.request_id):
        raise Invalid("this is no request that is forwarded", hint="is the other node a newer piccolod?")
    return asked


def _scope(asked: Forwarded, via: Via) -> dict[str, Any]:
    headers = [*asked.headers, (b"content-length", str(len(asked.body)).encode())]
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": asked.method, "scheme": "https" if asked.secure else "http", "path": asked.path,
        "raw_path": asked.path.encode(), "query_string": asked.query, "root_path": "", "headers": headers,
        "client": None, "server": None, "state": {"via": via, "request_id": asked.request_id},
    }  # fmt: skip

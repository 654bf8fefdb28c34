"""Around the routes: each request gets an id, an origin and its headers, and leaves an audit event. Nothing gets past it.

What the framework lets through as an exception ends here as a problem document, too.
"""

from __future__ import annotations

import secrets
import traceback
from typing import Any, Final

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from piccolod.errors import Failed, PiccoloError
from piccolod.protocol.events import Audit
from services.api import problem
from services.api.call import Call, Via
from services.api.connection import HEAD_BYTES
from services.api.core import Core
from services.api.origin import Origin, origin_of

# No script, no frame, no form target elsewhere; style and images are our own files.
CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_HSTS: Final = (b"strict-transport-security", b"max-age=31536000")
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_REFUSED: Final = frozenset({401, 403, 429})
_FIELD_BYTES: Final = 4  # colon, space and the line's end
_CUT: Final = 499  # the caller went away before there was an answer
_PATH_CHARACTERS: Final = 200


class Edge:
    def __init__(self, app: ASGIApp, core: Core) -> None:
        self._app = app
        self._core = core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # type: ignore[comparison-overlap]
            return
        call = self._call(scope)
        scope["state"] |= {"call": call, "core": self._core}
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._audit(scope, call, status)  # before the caller knows
                message["headers"] = [*message["headers"], *_headers(call)]
            await send(message)

        try:
            if _head_bytes(scope) > HEAD_BYTES:  # h11 bounds only a head that comes in parts
                await _refuse(call, answer, problem.HeadTooLarge(problem.HEAD_TOO_LARGE))
                return
            relay = self._core.relay
            if relay is None or call.via is not None or scope["method"] in _SAFE:  # type: ignore[typeddict-item]
                await self._app(scope, receive, answer)
            else:
                await relay.run(self._app, scope, call, receive, answer)
        except Exception:
            self._core.log.error(
                "failed a request by a bug", request_id=call.request_id, path=scope["path"], traceback=traceback.format_exc()
            )
            if status:
                raise  # the answer has begun: the connection is cut, so that nobody takes a part for the whole
            await _refuse(
                call, answer, Failed("the request failed by a mistake of ours", hint="see the log of the module `api`")
            )
        finally:
            call.held.close()
            if not status:
                self._audit(scope, call, _CUT)

    def _call(self, scope: Any) -> Call:
        via: Via | None = scope["state"].get("via")
        if via is not None:
            return Call(scope["state"]["request_id"], Origin(f"{via.node}:{via.source}", False, via.secure), via=via)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        peer = scope["state"].get("peer")
        client = scope["client"][0] if scope.get("client") else ""
        origin = origin_of(peer, client, scope["scheme"] == "https", headers, self._core.proxies)
        return Call(secrets.token_hex(8), origin)

    def _audit(self, scope: Any, call: Call, status: int) -> None:
        """Each management call, and each look that was refused to somebody."""
        if scope["method"] in _SAFE and status not in _REFUSED:
            return
        self._core.module.publish(
            Audit(
                actor=call.actor.name,
                source=call.origin.source,
                action=f"{scope['method'][:16]} {scope['path'][:_PATH_CHARACTERS]}",
                status=status,
                code=call.code,
                request_id=call.request_id,
            )
        )


def _headers(call: Call) -> list[tuple[bytes, bytes]]:
    extra = [(b"x-request-id", call.request_id.encode())]
    return [*_HEADERS, *extra, _HSTS] if call.origin.secure else [*_HEADERS, *extra]


def _head_bytes(scope: Any) -> int:
    fields = sum(len(name) + len(value) + _FIELD_BYTES for name, value in scope["headers"])
    return len(scope["raw_path"]) + len(scope["query_string"]) + fields


async def _refuse(call: Call, send: Send, error: PiccoloError) -> None:
    call.code = error.code
    body = problem.encode(error, call.request_id)
    headers = [(b"content-type", problem.MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})

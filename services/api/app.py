"""The routes as one ASGI application. Built once, by the import, before any process is forked from it."""

from __future__ import annotations

import traceback
from typing import Any, Final

from litestar import Litestar, Request, Response, Router
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, License, SecurityScheme, Server
from litestar.types import ControllerRouterHandler

from piccolod import lean
from piccolod.errors import Failed, Invalid, MethodNotAllowed, NotLeader, PiccoloError
from services.api import access, problem
from services.api.actor import Kind
from services.api.call import call_of, core_of
from services.api.routes import ROUTES

VERSION: Final = "1.0.0"


class _NoPages(Router):
    """Where litestar would put pages of its own, which load scripts from other hosts. `routes/docs.py` serves ours."""

    def register(self, value: ControllerRouterHandler) -> list[Any]:
        return []


def build() -> Litestar:
    with lean.without("attr", "attrs"):
        return Litestar(
            route_handlers=list(ROUTES),
            guards=[access.admit],
            exception_handlers={Exception: _answer},
            openapi_config=_openapi(),
            logging_config=None,  # its default starts a thread, which must not be in a process that forks
            debug=False,
            request_max_body_size=64 * 1024,
        )


def _openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="piccolod",
        version=VERSION,
        description="The management API of a piccolod node. Every failure is a problem document (RFC 9457).",
        license=License(name="Apache-2.0", identifier="Apache-2.0"),
        servers=[Server(url="/")],
        use_handler_docstrings=True,
        components=Components(
            security_schemes={
                "token": SecurityScheme(type="http", scheme="bearer"),
                "session": SecurityScheme(type="apiKey", name="piccolo_session", security_scheme_in="cookie"),
            }
        ),
        render_plugins=[JsonRenderPlugin()],
        openapi_router=_NoPages(path="/api/schema", route_handlers=[]),
    )


def _answer(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Any failure as a problem document."""
    call = call_of(request)
    shown = _shown(request, error)
    method = access.method_of(request)
    if isinstance(shown, NotLeader) and method not in access.SAFE:
        shown = core_of(request).with_leader(shown)
    call.code = shown.code
    headers = problem.headers(shown)
    if isinstance(shown, MethodNotAllowed):
        headers["Allow"] = ", ".join(_methods(request.scope["path"]))
    status = shown.status
    if isinstance(shown, NotLeader) and shown.leader is not None and method not in access.SAFE and _may_follow(request):
        if call.actor.kind is Kind.TOKEN and shown.leader.url:
            status = 307
            query = request.scope["query_string"].decode("latin-1")
            headers["Location"] = f"{shown.leader.url.rstrip('/')}{request.scope['path']}" + (f"?{query}" if query else "")
        else:
            call.elsewhere = shown.leader  # cookies do not cross hosts, tokens do: the edge asks the leader itself
    body = problem.encode(shown, call.request_id)
    return Response(body, status_code=status, media_type=problem.MEDIA_TYPE, headers=headers)


def _methods(path: str) -> list[str]:
    """What a path can be asked with."""
    parts = path.rstrip("/").split("/")
    found = {"OPTIONS"}
    for each in ROUTES:
        for template in each.paths:
            mine = template.split("/")
            if len(mine) == len(parts) and all(a == b or a.startswith("{") for a, b in zip(mine, parts, strict=True)):
                found |= set(each.http_methods)
    return sorted(found)


def _may_follow(request: Request[Any, Any, Any]) -> bool:
    return request.headers.get("piccolo-redirect", "").lower() != "never"


def _shown(request: Request[Any, Any, Any], error: Exception) -> PiccoloError:
    if isinstance(error, PiccoloError):
        return error
    if isinstance(error, HTTPException) and error.status_code < 500:
        return problem.from_framework(error)
    if isinstance(error, RecursionError) or isinstance(
        error.__cause__, RecursionError
    ):  # of the JSON decoder: no code of ours recurses
        return Invalid("the body is nested too deeply")
    core_of(request).log.error(
        "failed a request by a bug",
        request_id=call_of(request).request_id,
        path=request.scope["path"],
        traceback="".join(traceback.format_exception(error)),
    )
    return Failed("the request failed by a mistake of ours", hint="see the log of the module `api`")

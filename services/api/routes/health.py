"""Health for init systems, load balancers and people. Answers at any time, to anybody."""

from __future__ import annotations

from http import HTTPStatus

import msgspec
from litestar import Response

from piccolod.errors import Locked, PiccoloError, Unavailable
from services.api import problem
from services.api.asked import BASE, Req, core_of
from services.api.call import call_of
from services.api.documents import HealthDetail, Live
from services.api.endpoint import endpoint
from services.api.readiness import Readiness


@endpoint("GET", f"{BASE}/health/live", scope=None, asks=False, tag="health")
async def live() -> Live:
    """The process answers."""
    return Live(live=True)


@endpoint("GET", f"{BASE}/health/ready", scope=None, fails=(Unavailable,), asks=False, tag="health")
async def ready(request: Req) -> Response[Readiness]:
    """200 when this node can work; 503 names the component and the reason. A locked node is not ready, and not ill."""
    judged, _ = await core_of(request).judge()
    if judged.ready:
        return Response(judged)
    call = call_of(request)
    error = _why(judged)
    call.code = error.code
    body = {
        **msgspec.to_builtins(judged),
        **msgspec.to_builtins(problem.document(error, call.request_id)),
        "status": 503,
        "title": HTTPStatus(503).phrase,
    }
    return Response(body, status_code=503, media_type=problem.MEDIA_TYPE, headers={"Retry-After": "1"})  # type: ignore[arg-type]


@endpoint("GET", f"{BASE}/health/detail", scope=None, asks=False, tag="health")
async def detail(request: Req) -> HealthDetail:
    """Every component with its level, reason and role."""
    judged, components = await core_of(request).judge()
    return HealthDetail(ready=judged.ready, level=judged.level, reason=judged.reason, components=components)


def _why(judged: Readiness) -> PiccoloError:
    if judged.component == "lock":
        return Locked(f"this node is not ready: {judged.reason}", hint="piccoloctl unlock")
    return Unavailable(f"this node is not ready: {judged.component}: {judged.reason}", hint="piccoloctl health")


ROUTES = (live, ready, detail)

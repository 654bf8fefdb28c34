"""Numbers for Prometheus."""

from __future__ import annotations

from litestar import Response

from piccolod.protocol.telemetry import GetMetrics
from services.api.actor import Scope
from services.api.asked import Req, core_of
from services.api.endpoint import endpoint

_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@endpoint("GET", "/metrics", scope=Scope.READ, media_type="text/plain", tag="metrics")
async def metrics(request: Req) -> Response[str]:
    """Prometheus exposition format."""
    text = (await core_of(request).ask(GetMetrics())).text
    return Response(text, media_type=_MEDIA_TYPE)


ROUTES = (metrics,)

"""The API describes itself: for programs as OpenAPI 3.1, for people as a page."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from litestar import Litestar, Response

from services.api import docs_page
from services.api.asked import Req
from services.api.documents import JsonObject
from services.api.endpoint import endpoint


@cache
def document(app: Litestar) -> dict[str, Any]:
    return app.openapi_schema.to_schema()


@endpoint("GET", "/api/openapi.json", scope=None, asks=False, tag="docs")
async def openapi(request: Req) -> JsonObject:
    """This document."""
    return Response(msgspec.json.encode(document(request.app)), media_type="application/json")  # type: ignore[return-value]


@endpoint("GET", "/api/docs", scope=None, asks=False, media_type="text/html", tag="docs")
async def page(request: Req) -> Response[str]:
    """The same as a page."""
    return Response(docs_page.render(document(request.app)), media_type="text/html; charset=utf-8")


@endpoint("GET", "/api/docs.css", scope=None, asks=False, media_type="text/css", tag="docs")
async def style() -> Response[str]:
    """How the page looks."""
    return Response(docs_page.STYLE, media_type="text/css; charset=utf-8")


ROUTES = (openapi, page, style)

"""What routes take from a request, and how a write is answered."""

from __future__ import annotations

from typing import Any, TypeVar

from litestar import Request, Response

from services.api import access
from services.api.actor import Actor
from services.api.call import call_of
from services.api.call import core_of as core_of

Req = Request[Any, Any, Any]

T = TypeVar("T")

BASE = "/api/v1"


def actor_of(request: Req) -> Actor:
    return call_of(request).actor


async def idem_of(request: Req) -> str:
    return access.idempotency(request, await request.body())


def source_of(request: Req) -> str:
    """Who asks, for the limiter of passwords."""
    return call_of(request).origin.source


def written(content: T, rev: int, status: int = 200, headers: dict[str, str] | None = None) -> Response[T]:
    """The answer of a write: a reader that sends this rev as Piccolo-Min-Rev sees it anywhere."""
    return Response(content, status_code=status, headers={"Piccolo-Rev": str(rev), **(headers or {})})

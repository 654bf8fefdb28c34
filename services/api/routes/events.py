"""What happened: as history, and live by SSE. Both come from the journal, so that nobody misses what he reconnects for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import msgspec
from litestar.params import QueryParameter
from litestar.response import Stream

from piccolod import clock
from piccolod.errors import Invalid, PiccoloError, TooMany
from piccolod.protocol.telemetry import EventRecord, GetEvents
from services.api import access
from services.api.actor import Scope
from services.api.asked import BASE, Req, core_of
from services.api.core import Core
from services.api.endpoint import endpoint

_WAIT_S: Final = access.LOOK_AGAIN_S  # a comment keeps the connection alive this often
_AGAIN_S: Final = 0.5
_BATCH: Final = 200
_ID: Final = re.compile(r"\d{1,18}")

Filter = Annotated[str, QueryParameter(max_length=100)]


@endpoint("GET", f"{BASE}/events/history", scope=Scope.READ, tag="events")
async def history(
    request: Req,
    after: Annotated[int, QueryParameter(ge=-1, description="Events with a greater id; -1: the last ones.")] = -1,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 200,
    type_: Annotated[str, QueryParameter(name="type", max_length=100)] = "",
    key: Filter = "",
) -> tuple[EventRecord, ...]:
    """Events of the journal, oldest first."""
    return (await core_of(request).ask(GetEvents(after=after, limit=limit, type=type_, key=key))).events


@endpoint("GET", f"{BASE}/events", scope=Scope.READ, fails=(TooMany,), media_type="text/event-stream", tag="events")
async def stream(
    request: Req,
    type_: Annotated[str, QueryParameter(name="type", max_length=100)] = "",
    key: Filter = "",
) -> Stream:
    """Events as they come (Server-Sent Events). `Last-Event-ID` goes on where a former stream ended."""
    core = core_of(request)
    resume = request.headers.get("last-event-id")
    if resume is not None and not _ID.fullmatch(resume):
        raise Invalid("Last-Event-ID must be the id of an event, a whole number")
    core.streams.check()
    at = int(resume) if resume is not None else (await core.ask(GetEvents(after=-1, limit=1))).last_id
    return Stream(_events(request, core, at, type_, key), media_type="text/event-stream")


async def _events(request: Req, core: Core, at: int, type_: str, key: str) -> AsyncIterator[bytes]:
    with core.streams.seat():
        yield b"retry: 1000\n\n"
        look_at = clock.now() + access.LOOK_AGAIN_S
        while not core.closing.is_set():
            if clock.now() >= look_at:  # by the clock: on a busy node there is always another event
                if not await access.still(core, request, request.route_handler):
                    return
                look_at = clock.now() + access.LOOK_AGAIN_S
            try:
                found = await _next(core, GetEvents(after=at, limit=_BATCH, type=type_, key=key, wait_s=_WAIT_S))
            except PiccoloError:
                # The journal is being restarted: what happens meanwhile is in it, or said again by its owner.
                yield b": the journal does not answer\n\n"
                await asyncio.sleep(_AGAIN_S)
                continue
            if found is None:
                return
            for event in found.events:
                yield b"id: %d\ndata: %s\n\n" % (event.id, msgspec.json.encode(event))
                at = event.id
            if not found.events:
                # With a filter the journal moves on without us: the next question need not look at that again.
                at = max(at, found.last_id)
                yield b": alive\n\n"


async def _next(core: Core, request: GetEvents) -> Any:
    """The answer, or None when this module stops first."""
    asking = asyncio.ensure_future(core.ask(request, timeout_s=_WAIT_S + 5.0))
    closing = asyncio.ensure_future(core.closing.wait())
    try:
        await asyncio.wait({asking, closing}, return_when=asyncio.FIRST_COMPLETED)
        return asking.result() if asking.done() else None
    finally:
        asking.cancel()
        closing.cancel()


ROUTES = (history, stream)

"""Routes of apps: public ports and where they lead, over all router workers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec
from litestar.params import FromQuery, JSONBody

from piccolod.errors import PiccoloError, Unavailable
from piccolod.protocol.router import GetRoutes, RouteState, RouteTest, TestRoute
from services.api.actor import Scope
from services.api.asked import BASE, Req, core_of
from services.api.core import Core
from services.api.documents import RouteView
from services.api.endpoint import JSON, UNKNOWN, endpoint

_WORSE = ("local", "tunnel", "hold", "closed")


class RouteTestBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    app: str
    listener: str


@endpoint("GET", f"{BASE}/routes", scope=Scope.READ, tag="routes")
async def list_routes(request: Req, app: FromQuery[str | None] = None) -> tuple[RouteView, ...]:
    """Every listener, its mode, and its traffic. A worker that is being restarted is left out of the sums."""
    return merged(await states(core_of(request), app))


@endpoint("POST", f"{BASE}/routes/test", scope=Scope.WRITE, fails=UNKNOWN, accepts=JSON, tag="routes")
async def test_route(request: Req, data: JSONBody[RouteTestBody]) -> RouteTest:
    """Dials the endpoint of a listener as a client's connection would be."""
    core = core_of(request)
    failure: PiccoloError = Unavailable("no router is running", hint="`piccoloctl modules list`")
    for worker in core.routers:
        try:
            return await core.ask(TestRoute(app=data.app, listener=data.listener), timeout_s=10.0, target=worker)
        except Unavailable as error:
            failure = error
    raise failure


async def states(core: Core, app: str | None) -> list[RouteState]:
    """Of every worker that answers. Raises when none does."""
    answers = await asyncio.gather(
        *(core.ask(GetRoutes(app=app), timeout_s=2.0, target=worker) for worker in core.routers), return_exceptions=True
    )
    found = [answer for answer in answers if not isinstance(answer, BaseException)]
    if not found:
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
    return [state for answer in found for state in answer.routes]


def merged(found: Iterable[RouteState]) -> tuple[RouteView, ...]:
    """One view a listener: the newest epoch's, the least good of its modes, the sum of the counters. Pure."""
    groups: dict[tuple[str, str], list[RouteState]] = {}
    for state in found:
        groups.setdefault((state.app, state.listener), []).append(state)
    return tuple(_view(group) for _, group in sorted(groups.items()))


def _view(group: list[RouteState]) -> RouteView:
    newest = max(state.epoch for state in group)
    shown = max((state for state in group if state.epoch == newest), key=_badness)
    return RouteView(
        app=shown.app,
        listener=shown.listener,
        mode=shown.mode,
        public_port=shown.public_port,
        target=shown.target,
        epoch=shown.epoch,
        reason=shown.reason,
        connections=sum(state.connections for state in group),
        total_connections=sum(state.total_connections for state in group),
        refused=sum(state.refused for state in group),
        bytes_in=sum(state.bytes_in for state in group),
        bytes_out=sum(state.bytes_out for state in group),
    )


def _badness(state: RouteState) -> tuple[int, str]:
    return (_WORSE.index(state.mode) if state.mode in _WORSE else len(_WORSE), state.reason)


ROUTES = (list_routes, test_route)

"""router: every public port of every app, forwarded to its container while the gate holds.

Both workers have all routes and share the listening sockets; apps sends each route to both. The first worker speaks for
both on the bus.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from piccolod.errors import NotFound, PiccoloError
from piccolod.kernel import ROUTERS
from piccolod.leadership.gate import Gate
from piccolod.leadership.page import PageReader
from piccolod.module import Caller, Module
from piccolod.protocol.base import Level
from piccolod.protocol.events import RouteChanged
from piccolod.protocol.router import (
    ForgetAppRoute,
    GetRoutes,
    RegisterAppRoute,
    RouteState,
    RouteStates,
    RouteTest,
    TestRoute,
)
from services.router.doors import Doors
from services.router.edge import route_of, state_of
from services.router.flow import Port
from services.router.limits import Limits
from services.router.relay import Relay
from services.router.route import Mode, Route
from services.router.saved import SavedRoutes
from services.router.table import RouteTable
from services.router.tunnel.membership import Membership
from services.router.tunnel.probe import probe
from services.router.tunnel.wire import Preamble, Verdict

_LOOK_S: Final = 1.0  # how late a shut gate shows where nobody connects
_TEST_S: Final = 3.0


class Service:
    def __init__(self, module: Module) -> None:
        self._module = module
        self._speaks = module.name == ROUTERS[0]
        self._said: dict[str, RouteChanged] = {}
        self._unsaved = ""
        self._health: tuple[Level, str] | None = None
        self._reader = PageReader(module.paths.page)
        self._saved = SavedRoutes(module.paths.routes / module.name)
        self._table = RouteTable(Gate(self._reader), self._changed)
        self._relay = Relay(Limits.of_this_process(), self._table.judge, self._table.port)
        self._table.bind(self._relay)
        self._tunnels_fault = ""
        self._membership = Membership(module, self._relay, self._tunnels_failed)
        self._doors = Doors(module, self._relay, self._ports_changed)

    async def start(self) -> None:
        module = self._module
        failure = self._relay.attach(asyncio.get_running_loop())
        module.spawn(_raised(failure), name="relay")
        await self._membership.look()
        await self._adopt()
        module.serve(RegisterAppRoute, self._register)
        module.serve(ForgetAppRoute, self._forget)
        module.serve(GetRoutes, self._routes)
        module.serve(TestRoute, self._test)
        module.spawn(self._doors.keep_trying(), name="refused ports")
        module.spawn(self._look(), name="gates")
        module.spawn(self._membership.run(), name="membership")
        self._show_health()

    async def stop(self) -> None:
        self._relay.close()
        self._reader.close()

    async def _adopt(self) -> None:
        """Forwards as before the restart; the gate is asked as always."""
        try:
            self._saved.prepare()
        except OSError as error:
            self._unsaved = str(error)
            return
        routes, broken = self._saved.load()
        for name in broken:
            self._module.log.warning("dropped a saved route that cannot be read", file=name)
        for route in routes:
            self._table.offer(route)
        self._doors.want(self._table.wanted())
        await self._doors.settle()
        self._ports_changed()

    # --- commands

    async def _register(self, request: RegisterAppRoute, _caller: Caller) -> RouteStates:
        offered = route_of(request)
        before = self._table.route(offered.app)
        step = self._table.offer(offered)
        if not step.accepted:
            self._module.log.info(
                "ignored a route of a dead epoch", app=offered.app, epoch=offered.epoch, ours=step.route.epoch
            )
            return self._states_of(offered.app)
        if offered != before:
            self._module.log.info("took a route", app=offered.app, mode=offered.mode, epoch=offered.epoch)
            self._keep(offered)
        await self._settle()
        self._announce(offered.app)
        return self._states_of(offered.app)

    async def _forget(self, request: ForgetAppRoute, _caller: Caller) -> RouteStates:
        if self._table.forget(request.app):
            self._saved.drop(request.app)
            self._module.log.info("forgot a route", app=request.app)
            await self._settle()
            self._announce(request.app)
        return RouteStates(routes=())

    async def _routes(self, request: GetRoutes, _caller: Caller) -> RouteStates:
        self._table.judge_all()
        apps = self._table.apps if request.app is None else [request.app]
        return RouteStates(routes=tuple(state for app in apps for state in self._states_of(app).routes))

    async def _test(self, request: TestRoute, _caller: Caller) -> RouteTest:
        port = self._table.port(request.app, request.listener)
        if port is None:
            raise NotFound(f"app {request.app!r} has no route for a listener {request.listener!r} here")
        mode = self._table.judge(port)
        if mode is Mode.TUNNEL:
            return await self._test_tunnel(port)
        if mode is not Mode.LOCAL or port.target is None:
            return RouteTest(ok=False, reason=port.reason or f"the route is in {mode}", connect_ms=0.0)
        began = time.monotonic()
        try:
            async with asyncio.timeout(_TEST_S):
                _, writer = await asyncio.open_connection(port.target.address, port.target.port)
        except TimeoutError:
            return RouteTest(ok=False, reason=f"no answer from {port.target} in {_TEST_S:.0f} s", connect_ms=0.0)
        except OSError as error:
            return RouteTest(ok=False, reason=f"{port.target}: {error.strerror or error}", connect_ms=0.0)
        writer.close()
        return RouteTest(ok=True, reason="", connect_ms=(time.monotonic() - began) * 1000)

    async def _test_tunnel(self, port: Port) -> RouteTest:
        security, leader = self._membership.security, port.leader
        if security is None or leader is None:
            return RouteTest(ok=False, reason=port.trouble or "this node is a member of no cluster", connect_ms=0.0)
        own = self._module.config.node.address
        words = Preamble(app=port.app, listener=port.listener.name, epoch=port.epoch, address=own, port=0)
        began = time.monotonic()
        try:
            async with asyncio.timeout(_TEST_S):
                answer = await probe(security, leader, words)
        except TimeoutError:
            return RouteTest(ok=False, reason=f"no answer from {leader} in {_TEST_S:.0f} s", connect_ms=0.0)
        except (OSError, EOFError, PiccoloError) as error:
            return RouteTest(ok=False, reason=f"{leader}: {_words(error)}", connect_ms=0.0)
        if answer.verdict is not Verdict.SERVED:
            return RouteTest(ok=False, reason=f"{leader}: {answer.reason}", connect_ms=0.0)
        return RouteTest(ok=True, reason="", connect_ms=(time.monotonic() - began) * 1000)

    # --- what follows a change

    async def _settle(self) -> None:
        self._doors.want(self._table.wanted())
        await self._doors.settle()
        self._show_health()

    def _keep(self, route: Route) -> None:
        try:
            self._saved.keep(route)
        except OSError as error:
            self._unsaved = str(error)
        else:
            self._unsaved = ""

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self._table.judge_all()

    def _changed(self, app: str) -> None:
        route, states = self._table.route(app), self._states_of(app).routes
        if route is not None and states:
            self._module.log.info("route changed", app=app, mode=states[0].mode, epoch=route.epoch, reason=states[0].reason)
        self._announce(app)

    def _ports_changed(self) -> None:
        for app in self._table.apps:
            self._announce(app)
        self._show_health()

    def _tunnels_failed(self, reason: str) -> None:
        if reason != self._tunnels_fault:
            self._tunnels_fault = reason
            self._show_health()

    def _announce(self, app: str) -> None:
        """Tells the bus what is in force, once."""
        event = self._event(app)
        if self._speaks and self._said.get(app) != event:
            self._said[app] = event
            self._module.publish(event)

    def _event(self, app: str) -> RouteChanged:
        states = self._states_of(app).routes
        if not states:
            route = self._table.route(app)
            mode, epoch = (route.mode, route.epoch) if route else (Mode.CLOSED, 0)
            return RouteChanged(app=app, mode=mode, epoch=epoch, reason="no route", worker=self._module.name)
        worst = next((state for state in states if state.reason), states[0])
        return RouteChanged(app=app, mode=worst.mode, epoch=worst.epoch, reason=worst.reason, worker=self._module.name)

    def _show_health(self) -> None:
        """A port that is held by somebody else is a warning: the rest is served. Holding is not, it is a role's doing."""
        troubles = [text for app in self._table.apps for state in self._states_of(app).routes if (text := self._trouble(state))]
        if self._unsaved:
            troubles.append(f"routes cannot be kept for a restart: {self._unsaved}")
        if self._tunnels_fault:
            troubles.append(self._tunnels_fault)
        health = (Level.WARN if troubles else Level.OK, "; ".join(troubles[:5]))
        if health != self._health:
            self._health = health
            self._module.health(*health)

    def _trouble(self, state: RouteState) -> str:
        why = self._unreachable(state.app, state.listener, state.public_port)
        return f"{state.app}/{state.listener}: {why}" if why else ""

    def _states_of(self, app: str) -> RouteStates:
        route = self._table.route(app)
        states = []
        for listener in route.listeners if route else ():
            port = self._table.port(app, listener.name)
            if route is not None and port is not None:
                states.append(state_of(route, port, self._unreachable(app, listener.name, listener.public_port)))
        return RouteStates(routes=tuple(states))

    def _unreachable(self, app: str, listener: str, number: int) -> str:
        """Why a port that should be open is not."""
        return self._table.conflict(app, listener) or self._doors.refused.get(number, "")


def _words(error: Exception) -> str:
    if isinstance(error, PiccoloError):
        return error.detail
    return getattr(error, "strerror", "") or str(error) or type(error).__name__


async def _raised(failure: asyncio.Future[None]) -> None:
    await failure

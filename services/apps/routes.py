"""Tells every router worker where each app is. Level-triggered: a worker that restarted or missed a word is told again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from piccolod.errors import Invalid, NotSupported, PiccoloError
from piccolod.kernel import ROUTERS
from piccolod.protocol.base import Request
from piccolod.protocol.router import ForgetAppRoute, RegisterAppRoute, RouteStates
from services.apps.situation import Route

_RETRY_S: Final = 0.2
_TROUBLED_S: Final = 2.0
ANSWER_S: Final = 2.0

Call = Callable[[Request[RouteStates], str], Awaitable[RouteStates]]


class Routes:
    """What each worker should know, and a task for each that sees to it."""

    def __init__(self, call: Call, refused: Callable[[str, str, str], None], changed: Callable[[str], None]) -> None:
        """`refused(app, worker, why)` tells of a route that no worker will ever take; `changed(app)` is called when a port of
        it becomes usable or useless."""
        self._workers = {name: _Worker(name, call, refused, changed) for name in ROUTERS}

    def tasks(self) -> dict[str, Any]:
        return {f"routes-{name}": worker.run() for name, worker in self._workers.items()}

    async def set(self, request: RegisterAppRoute, wait_s: float) -> None:
        """Returns when every worker acts on it, or after `wait_s`: the gate holds whatever a worker knows."""
        await self._set(request.app, request, wait_s)

    async def forget(self, app: str, wait_s: float) -> None:
        await self._set(app, ForgetAppRoute(app=app), wait_s)

    async def _set(self, app: str, request: Request[RouteStates], wait_s: float) -> None:
        waits = [worker.want(app, request) for worker in self._workers.values()]
        pending = [asyncio.ensure_future(known.wait()) for known in waits if not known.is_set()]
        if pending:
            _, late = await asyncio.wait(pending, timeout=wait_s)
            for task in late:
                task.cancel()

    def worker_changed(self, name: str) -> None:
        """Its process is another one: it may know an old table or none."""
        if (worker := self._workers.get(name)) is not None:
            worker.forget_what_it_knows()

    def refresh(self) -> None:
        for worker in self._workers.values():
            worker.forget_what_it_knows()

    def trouble(self, app: str) -> str:
        """Why a port of the app is not served, if so."""
        found = (worker.troubles.get(app, {}) for worker in self._workers.values())
        return next((f"{listener}: {reason}" for ports in found for listener, reason in ports.items()), "")

    def unbound(self, app: str) -> frozenset[str]:
        """Listeners whose public port is of no use, at one worker at least."""
        return frozenset(listener for worker in self._workers.values() for listener in worker.troubles.get(app, {}))


class _Worker:
    def __init__(self, name: str, call: Call, refused: Callable[[str, str, str], None], changed: Callable[[str], None]) -> None:
        self._name, self._call, self._refused, self._changed = name, call, refused, changed
        self._said: dict[str, Request[RouteStates]] = {}  # what was told as refused
        self._wanted: dict[str, Request[RouteStates]] = {}
        self._known: dict[str, asyncio.Event] = {}
        self._wake = asyncio.Event()
        self.troubles: dict[str, dict[str, str]] = {}  # app -> listener -> why its port is not open

    def want(self, app: str, request: Request[RouteStates]) -> asyncio.Event:
        """An event that is set when the worker acts on `request`."""
        if self._wanted.get(app) != request:
            self._wanted[app] = request
            self._known[app] = asyncio.Event()
            self._wake.set()
        return self._known[app]

    def forget_what_it_knows(self) -> None:
        self._known = {app: asyncio.Event() for app in self._wanted}
        self._wake.set()

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_TROUBLED_S if self.troubles else None):
                    await self._wake.wait()
            except TimeoutError:
                # The router tries a port again by itself and tells nobody but who asks.
                for app in list(self.troubles):
                    await self._tell(app)
                continue
            self._wake.clear()
            results = [await self._tell(app) for app in list(self._wanted) if not self._known[app].is_set()]
            if not all(results):
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    async def _tell(self, app: str) -> bool:
        request = self._wanted.get(app)
        if request is None:
            self.troubles.pop(app, None)
            return True
        known = self._known[app]
        try:
            states = await self._call(request, self._name)
            if isinstance(request, RegisterAppRoute) and (behind := _newer_epoch(request, states)):
                # Where no term guards the route, its epoch only has to be high enough to be heard.
                states = await self._call(msgspec.structs.replace(request, epoch=behind), self._name)
        except (Invalid, NotSupported) as error:  # however often it is asked
            if self._said.get(app) != request:
                self._said[app] = request
                self._refused(app, self._name, "; ".join(each.message for each in error.errors) or error.detail)
            return False
        except PiccoloError:
            return False
        self._note(
            app, {state.listener: state.reason for state in states.routes if state.app == app and _is_port(state.reason)}
        )
        if self._wanted.get(app) == request:
            known.set()
            if isinstance(request, ForgetAppRoute):
                del self._wanted[app]
        return True

    def _note(self, app: str, troubles: dict[str, str]) -> None:
        if self.troubles.get(app, {}) == troubles:
            return
        if troubles:
            self.troubles[app] = troubles
        else:
            del self.troubles[app]
        self._changed(app)


def _newer_epoch(request: RegisterAppRoute, states: RouteStates) -> int:
    if request.token or request.mode == Route.TUNNEL:  # of these the epoch says which term it is
        return 0
    return max((state.epoch for state in states.routes if state.app == request.app and state.epoch > request.epoch), default=0)


def _is_port(reason: str) -> bool:
    """The two reasons of the router for a public port that is not open begin so."""
    return reason.startswith("port ")

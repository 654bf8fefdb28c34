"""The routes that this worker has, and what they make of its ports.

The shell around `route.py`: it asks the gate, sets modes, and tells the relay which flows end.
"""

from __future__ import annotations

from collections.abc import Callable

from piccolod import clock
from piccolod.errors import TermOver
from piccolod.leadership.gate import Gate, Shut
from services.router.flow import Port
from services.router.relay import Relay
from services.router.route import DRAIN_S, Flows, Listener, Mode, Route, Step, claims, in_force, supersede


class RouteTable:
    """`on_change(app)` is called when what is in force for an app changes."""

    def __init__(self, gate: Gate, on_change: Callable[[str], None]) -> None:
        self._gate = gate
        self._on_change = on_change
        self._routes: dict[str, Route] = {}
        self._ports: dict[tuple[str, str], Port] = {}
        self._conflicts: dict[tuple[str, str], str] = {}
        self._relay: Relay | None = None

    def bind(self, relay: Relay) -> None:
        """The relay asks this table, this table tells the relay: one of the two has to come first."""
        self._relay = relay

    @property
    def apps(self) -> list[str]:
        return sorted(self._routes)

    def route(self, app: str) -> Route | None:
        return self._routes.get(app)

    def port(self, app: str, listener: str) -> Port | None:
        return self._ports.get((app, listener))

    def conflict(self, app: str, listener: str) -> str:
        """Why another app has this listener's public port, empty if none has."""
        return self._conflicts.get((app, listener), "")

    # --- routes

    def offer(self, offered: Route) -> Step:
        """Takes a route, or ignores it for its lower epoch. Flows end as `route.supersede` says."""
        current = self._routes.get(offered.app)
        step = supersede(current, offered)
        if not step.accepted:
            return step
        self._routes[offered.app] = offered
        for listener in current.listeners if current else ():
            self._end_flows(self._ports[offered.app, listener.name], step.flows[listener.name])
            if offered.listener(listener.name) is None:
                self._remove(offered.app, listener.name)
        for listener in offered.listeners:
            self._put(offered, listener)
        return step

    def forget(self, app: str) -> bool:
        """Cuts everything of an app. False: there was nothing."""
        route = self._routes.pop(app, None)
        for listener in route.listeners if route else ():
            self._remove(app, listener.name)
        return route is not None

    def wanted(self) -> dict[int, Port]:
        """The public ports that should be open."""
        held, self._conflicts = claims(self._routes.values())
        return {number: self._ports[claim.app, claim.listener.name] for number, claim in held.items()}

    # --- what is in force

    def judge(self, port: Port) -> Mode:
        """What a port may do now. Called by the relay before it accepts and before it goes on forwarding."""
        route = self._routes.get(port.app)
        if route is None:
            return Mode.CLOSED
        shut = self._shut(route)
        mode, reason = in_force(route, port.listener, shut)
        if (mode, reason) != (port.mode, port.reason):
            self._enforce(port, mode, reason, fence=bool(shut))
        return mode

    def judge_all(self) -> None:
        for port in self._ports.values():
            self.judge(port)

    def _shut(self, route: Route) -> str:
        """Why the gate does not hold for this very route, empty if it does."""
        if not route.resource or route.mode is not Mode.LOCAL:
            return ""
        try:
            term = self._gate.check(route.resource)
        except TermOver as over:
            return str(over.reason)
        return "" if (term.token, term.epoch) == (route.token, route.epoch) else Shut.OTHER_TERM.value

    def _enforce(self, port: Port, mode: Mode, reason: str, *, fence: bool) -> None:
        was, port.mode, port.reason = port.mode, mode, reason
        relay = self._relay
        if relay is not None:
            relay.turn(port)
            if mode is Mode.LOCAL:
                port.drain_at = None
                relay.release(port)
            elif mode is Mode.TUNNEL:
                port.drain_at = None
            elif mode is Mode.CLOSED:
                relay.dismiss(port)
            elif fence:
                # Not a planned move: whoever leads now must not share these clients with us.
                relay.cut(port)
        if was is not mode:
            self._on_change(port.app)

    # --- ports

    def _put(self, route: Route, listener: Listener) -> None:
        key = route.app, listener.name
        port = self._ports.get(key)
        if port is not None and port.listener.public_port != listener.public_port:
            self._remove(*key)
            port = None
        if port is None:
            port = self._ports[key] = Port(route.app, listener)
        port.listener = listener
        port.target = route.target(listener.name)
        moved = (port.leader, port.epoch) != (route.leader, route.epoch)
        port.leader, port.epoch = route.leader, route.epoch
        was = port.mode
        if self.judge(port) is was and moved and self._relay is not None:
            self._relay.turn(port)

    def _remove(self, app: str, listener: str) -> None:
        port = self._ports.pop((app, listener))
        port.mode = Mode.CLOSED
        if self._relay is not None:
            self._relay.forget(port)

    def _end_flows(self, port: Port, flows: Flows) -> None:
        if self._relay is None or flows is Flows.KEEP:
            return
        if flows is Flows.CUT:
            self._relay.cut(port)
        elif port.drain_at is None:
            port.drain_at = clock.now() + DRAIN_S

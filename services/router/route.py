"""The route of an app: what apps decided, and what of it is in force here.

Pure. `supersede` says what a newly offered route does to the last one and to the flows that run; `in_force` is the one
downgrade that the router may make by itself: `local` becomes `hold` while the gate is shut.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, StrEnum
from typing import Final

import msgspec

from piccolod.config import at_port

# What existing flows get to end by themselves when an app moves as planned.
DRAIN_S: Final = 5.0


class Mode(StrEnum):
    LOCAL = "local"
    TUNNEL = "tunnel"
    HOLD = "hold"
    CLOSED = "closed"


class Protocol(StrEnum):
    RAW = "raw"
    HTTP = "http"
    WEBSOCKET = "websocket"

    @property
    def speaks_http(self) -> bool:
        return self is not Protocol.RAW


class ClientIp(StrEnum):
    NONE = "none"
    PROXY_V2 = "proxy-v2"
    XFF = "xff"


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    public_port: int
    protocol: Protocol = Protocol.RAW
    client_ip: ClientIp = ClientIp.NONE
    hold_s: float = 10.0


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a listener's connections go: the container's own address."""

    listener: str
    address: str
    port: int

    def __str__(self) -> str:
        return at_port(self.address, self.port)


class Leader(msgspec.Struct, frozen=True, kw_only=True):
    """The node that a tunnel leads to, and where its peer port is. Nobody else is accepted there."""

    node: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.node} ({at_port(self.address, self.port)})"


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One app's route. `resource` empty: it runs without leadership, no gate guards it. `leader`: of a tunnel alone."""

    app: str
    mode: Mode
    epoch: int
    resource: str = ""
    token: int = 0
    listeners: tuple[Listener, ...] = ()
    targets: tuple[Target, ...] = ()
    leader: Leader | None = None

    def listener(self, name: str) -> Listener | None:
        return next((item for item in self.listeners if item.name == name), None)

    def target(self, listener: str) -> Target | None:
        return next((item for item in self.targets if item.listener == listener), None)


class Flows(Enum):
    """What happens to the connections that a listener has when its route changes."""

    KEEP = "keep"
    DRAIN = "drain"  # end by yourselves within DRAIN_S
    CUT = "cut"  # at once


class Step(msgspec.Struct, frozen=True):
    """The outcome of an offer: the route from now on, and what each old listener's flows do."""

    route: Route
    accepted: bool
    flows: dict[str, Flows] = {}


def supersede(current: Route | None, offered: Route) -> Step:
    """A lower epoch changes nothing; a higher one cuts the flows of the dead epoch; the same one goes gently."""
    if current is None:
        return Step(offered, True)
    if offered.epoch < current.epoch:
        return Step(current, False)
    return Step(offered, True, {listener.name: _flows(current, offered, listener) for listener in current.listeners})


def _flows(current: Route, offered: Route, listener: Listener) -> Flows:
    after = offered.listener(listener.name)
    if offered.epoch > current.epoch or after is None or after.public_port != listener.public_port:
        return Flows.CUT
    if offered.mode is Mode.TUNNEL:
        # After HOLD it is a move that was taken back: what drains may stay.
        stays = current.mode is Mode.HOLD or offered.leader == current.leader
        return Flows.KEEP if stays else Flows.CUT
    if offered.mode is not Mode.LOCAL:
        return Flows.DRAIN
    # The container of the old address is gone: without a reset its flows would wait for a keepalive to notice.
    return Flows.KEEP if offered.target(listener.name) == current.target(listener.name) else Flows.CUT


def in_force(route: Route, listener: Listener, shut: str) -> tuple[Mode, str]:
    """(mode, why it is not the wanted one). `shut` is the gate's reason, empty when it is open."""
    if route.mode is not Mode.LOCAL:
        return route.mode, ""
    if shut:
        return Mode.HOLD, shut
    if route.target(listener.name) is None:
        return Mode.HOLD, "the app has no address for this listener yet"
    return Mode.LOCAL, ""


class Claim(msgspec.Struct, frozen=True):
    """A public port and the listener that it belongs to."""

    app: str
    listener: Listener


def claims(routes: Iterable[Route]) -> tuple[dict[int, Claim], dict[tuple[str, str], str]]:
    """(which listener has which public port, why the others have none). A closed route wants no port.

    Two apps with one port cannot come from the control store; if they do, the first by name has it.
    """
    held: dict[int, Claim] = {}
    refused: dict[tuple[str, str], str] = {}
    for route in sorted(routes, key=lambda item: item.app):
        if route.mode is Mode.CLOSED:
            continue
        for listener in route.listeners:
            other = held.setdefault(listener.public_port, Claim(route.app, listener))
            if (other.app, other.listener.name) != (route.app, listener.name):
                refused[route.app, listener.name] = f"port {listener.public_port} belongs to app {other.app}"
    return held, refused

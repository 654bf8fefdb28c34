"""Commands of router: public ports and where they lead. Sent to every worker (`router.0`, `router.1`)."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from piccolod.protocol.base import Request


class RouteListener(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    public_port: int
    flow: str  # tcp | tls
    protocol: str  # raw | http | websocket
    client_ip: str  # none | proxy-v2 | xff
    hold_s: float


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a listener's connections go: the container's own address."""

    listener: str
    address: str
    port: int


class RouteState(msgspec.Struct, frozen=True, kw_only=True):
    """One listener as one worker sees it. `mode` is what is in force; a downgrade says why in `reason`."""

    app: str
    listener: str
    mode: str  # local | tunnel | hold | closed
    public_port: int
    target: str  # of the container; of a tunnel `NODE (HOST:PORT)`
    epoch: int
    reason: str  # empty: as wanted
    connections: int = 0
    total_connections: int = 0
    refused: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class RouteStates(msgspec.Struct, frozen=True, kw_only=True):
    routes: tuple[RouteState, ...]


class RegisterAppRoute(Request[RouteStates], frozen=True, kw_only=True):
    """The route of an app, all its listeners. Idempotent; a lower epoch than the last is ignored (its answer shows it).

    `resource` and `token` are what the gate must hold for `local`; `resource` empty: no leadership (always_on).
    For `tunnel`, `leader_addr` is HOST:PORT of the peer port of the node `leader`, which alone is accepted there, and `epoch`
    is the leader's; `resource`, `token` and `endpoints` are empty.
    A port held by another program is named in that listener's `reason` and tried again; it is never an error.
    """

    command: ClassVar[str] = "router.register_app_route"
    reply: ClassVar[type] = RouteStates
    app: str
    mode: str
    epoch: int
    resource: str
    token: int
    leader_addr: str = ""
    leader: str = ""
    listeners: tuple[RouteListener, ...]
    endpoints: tuple[Endpoint, ...] = ()


class ForgetAppRoute(Request[RouteStates], frozen=True, kw_only=True):
    """The app is gone: its ports are closed and its flows cut. Idempotent."""

    command: ClassVar[str] = "router.forget_app_route"
    reply: ClassVar[type] = RouteStates
    app: str


class GetRoutes(Request[RouteStates], frozen=True, kw_only=True):
    command: ClassVar[str] = "router.routes"
    reply: ClassVar[type] = RouteStates
    app: str | None = None


class RouteTest(msgspec.Struct, frozen=True, kw_only=True):
    ok: bool
    reason: str
    connect_ms: float


class TestRoute(Request[RouteTest], frozen=True, kw_only=True):
    """Dials the endpoint of a listener as a connection of a client would."""

    command: ClassVar[str] = "router.test"
    reply: ClassVar[type] = RouteTest
    app: str
    listener: str

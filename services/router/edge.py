"""Between the bus and this service: what others send is checked and made ours, what we have is shown as theirs."""

from __future__ import annotations

import ipaddress
import math
import re
from enum import StrEnum
from typing import Final, TypeVar

from piccolod.config import split_listen
from piccolod.errors import Invalid, NotSupported, Problem
from piccolod.protocol.router import Endpoint, RegisterAppRoute, RouteListener, RouteState
from services.router.flow import Port
from services.router.route import ClientIp, Leader, Listener, Mode, Protocol, Route, Target

_APP: Final = re.compile(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?")  # apps.md; also the name of a file here
_FLOWS: Final = ("tcp", "tls")  # both are passed through untouched
_NODE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?")  # the rule of `node.name`
_LONGEST_HOLD_S: Final = 3600.0

Kind = TypeVar("Kind", bound=StrEnum)


def route_of(request: RegisterAppRoute) -> Route:
    """The route that a command asks for. Raises Invalid with every mistake, NotSupported for what is not built."""
    if request.mode not in tuple(Mode):
        raise NotSupported(f"route mode {request.mode!r} is not supported", hint="local, tunnel, hold or closed")
    if unsupported := [item.flow for item in request.listeners if item.flow not in _FLOWS]:
        raise NotSupported(f"listener flow {unsupported[0]!r} is not supported", hint="tcp or tls")
    problems = list(_problems(request))
    if problems:
        raise Invalid(f"the route of {request.app!r} has {len(problems)} mistake(s)", errors=tuple(problems))
    return Route(
        app=request.app,
        mode=Mode(request.mode),
        epoch=request.epoch,
        resource=request.resource,
        token=request.token,
        listeners=tuple(map(_listener, request.listeners)),
        targets=tuple(Target(listener=item.listener, address=item.address, port=item.port) for item in request.endpoints),
        leader=_leader(request) if request.mode == Mode.TUNNEL else None,
    )


def _leader(request: RegisterAppRoute) -> Leader:
    address, port = split_listen(request.leader_addr)
    return Leader(node=request.leader, address=address, port=port)


def _listener(item: RouteListener) -> Listener:
    return Listener(
        name=item.name,
        public_port=item.public_port,
        protocol=Protocol(item.protocol),
        client_ip=ClientIp(item.client_ip),
        hold_s=item.hold_s,
    )


def _problems(request: RegisterAppRoute) -> list[Problem]:
    problems = [] if _APP.fullmatch(request.app) else [Problem("app", f"{request.app!r} is not the name of an app")]
    if request.epoch < 0:
        problems.append(Problem("epoch", "must not be negative"))
    names = [item.name for item in request.listeners]
    if len(set(names)) < len(names):
        problems.append(Problem("listeners", "two have the same name"))
    for index, listener in enumerate(request.listeners):
        problems += _listener_problems(f"listeners[{index}]", listener)
    for index, endpoint in enumerate(request.endpoints):
        problems += _endpoint_problems(f"endpoints[{index}]", endpoint)
    if request.mode == Mode.TUNNEL:
        problems += _tunnel_problems(request)
    return problems


def _tunnel_problems(request: RegisterAppRoute) -> list[Problem]:
    problems = [] if _NODE.fullmatch(request.leader) else [Problem("leader", f"{request.leader!r} is not the name of a node")]
    try:
        _, port = split_listen(request.leader_addr)
    except ValueError as error:
        return [*problems, Problem("leader_addr", str(error))]
    if not 1 <= port <= 65535:
        problems.append(Problem("leader_addr", "its port must be 1 to 65535"))
    if request.resource or request.token or request.endpoints:
        problems.append(Problem("resource", "a tunnel has no resource, no token and no endpoints: its leader has them"))
    return problems


def _listener_problems(path: str, listener: RouteListener) -> list[Problem]:
    problems = []
    if not 1 <= listener.public_port <= 65535:
        problems.append(Problem(f"{path}.public_port", "must be 1 to 65535"))
    if not (math.isfinite(listener.hold_s) and 0 <= listener.hold_s <= _LONGEST_HOLD_S):
        problems.append(Problem(f"{path}.hold_s", f"must be 0 to {_LONGEST_HOLD_S:.0f} seconds"))
    if listener.protocol not in tuple(Protocol):
        problems.append(Problem(f"{path}.protocol", "must be raw, http or websocket"))
    if listener.client_ip not in tuple(ClientIp):
        problems.append(Problem(f"{path}.client_ip", "must be none, proxy-v2 or xff"))
    if listener.client_ip == ClientIp.XFF and (listener.protocol != Protocol.HTTP or listener.flow != "tcp"):
        problems.append(Problem(f"{path}.client_ip", "xff needs `flow: tcp` and `protocol: http`"))
    return problems


def _endpoint_problems(path: str, endpoint: Endpoint) -> list[Problem]:
    problems = []
    try:
        ipaddress.ip_address(endpoint.address)
    except ValueError:
        problems.append(Problem(f"{path}.address", f"{endpoint.address!r} is not an IP address"))
    if not 1 <= endpoint.port <= 65535:
        problems.append(Problem(f"{path}.port", "must be 1 to 65535"))
    return problems


def state_of(route: Route, port: Port, unreachable: str) -> RouteState:
    """A listener as it is here. `unreachable` says why its public port is not open: then nothing is in force."""
    received, returned = port.moved()
    return RouteState(
        app=route.app,
        listener=port.listener.name,
        mode=Mode.CLOSED if unreachable else port.mode,
        public_port=port.listener.public_port,
        target=str((port.leader if port.mode is Mode.TUNNEL else port.target) or ""),
        epoch=route.epoch,
        reason=unreachable or port.reason or port.trouble,
        connections=len(port.clients),
        total_connections=port.total,
        refused=port.refused,
        bytes_in=received,
        bytes_out=returned,
    )

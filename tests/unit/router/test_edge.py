from __future__ import annotations

import pytest

from piccolod.errors import Invalid, NotSupported
from piccolod.protocol.router import Endpoint, RegisterAppRoute, RouteListener
from services.router.edge import route_of, state_of
from services.router.flow import Port
from services.router.route import ClientIp, Mode, Protocol, Target


def listener(**fields: object) -> RouteListener:
    given = {"name": "web", "public_port": 35000, "flow": "tcp", "protocol": "http", "client_ip": "none", "hold_s": 10.0}
    return RouteListener(**given | fields)  # type: ignore[arg-type]


def request(**fields: object) -> RegisterAppRoute:
    given = {
        "app": "notes",
        "mode": "local",
        "epoch": 4,
        "resource": "app:notes",
        "token": 9,
        "listeners": (listener(),),
        "endpoints": (Endpoint(listener="web", address="10.88.0.2", port=80),),
    }
    return RegisterAppRoute(**given | fields)  # type: ignore[arg-type]


def test_a_command_becomes_a_route() -> None:
    route = route_of(request(listeners=(listener(client_ip="xff"),)))
    assert (route.app, route.mode, route.epoch, route.resource, route.token) == ("notes", Mode.LOCAL, 4, "app:notes", 9)
    assert route.listeners[0].protocol is Protocol.HTTP
    assert route.listeners[0].client_ip is ClientIp.XFF
    assert route.targets == (Target(listener="web", address="10.88.0.2", port=80),)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"app": "../etc"}, "app"),
        ({"app": "notes\n"}, "app"),
        ({"epoch": -1}, "epoch"),
        ({"listeners": (listener(), listener(public_port=35001))}, "listeners"),
        ({"listeners": (listener(public_port=0),)}, "listeners[0].public_port"),
        ({"listeners": (listener(public_port=65536),)}, "listeners[0].public_port"),
        ({"listeners": (listener(hold_s=float("nan")),)}, "listeners[0].hold_s"),
        ({"listeners": (listener(hold_s=-1.0),)}, "listeners[0].hold_s"),
        ({"listeners": (listener(protocol="gopher"),)}, "listeners[0].protocol"),
        ({"listeners": (listener(client_ip="yes"),)}, "listeners[0].client_ip"),
        ({"listeners": (listener(client_ip="xff", protocol="raw"),)}, "listeners[0].client_ip"),
        ({"listeners": (listener(client_ip="xff", flow="tls"),)}, "listeners[0].client_ip"),
        ({"endpoints": (Endpoint(listener="web", address="container", port=80),)}, "endpoints[0].address"),
        ({"endpoints": (Endpoint(listener="web", address="10.88.0.2", port=0),)}, "endpoints[0].port"),
    ],
)
def test_a_mistake_is_named_with_its_place(fields: dict[str, object], path: str) -> None:
    with pytest.raises(Invalid) as caught:
        route_of(request(**fields))
    assert [problem.path for problem in caught.value.errors] == [path]


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        route_of(request(app="A", epoch=-1, listeners=(listener(public_port=0, protocol="x"),)))
    assert len(caught.value.errors) == 4


@pytest.mark.parametrize("fields", [{"mode": "tunnel"}, {"listeners": (listener(flow="udp"),)}])
def test_what_is_not_built_is_refused_by_name(fields: dict[str, object]) -> None:
    with pytest.raises(NotSupported, match="is not supported"):
        route_of(request(**fields))


def test_a_port_that_is_not_open_is_never_shown_as_reachable() -> None:
    route = route_of(request())
    port = Port("notes", route.listeners[0])
    port.mode, port.target = Mode.LOCAL, route.targets[0]
    assert state_of(route, port, "").mode == "local"
    assert state_of(route, port, "").target == "10.88.0.2:80"
    shown = state_of(route, port, "port 35000 cannot be opened: in use")
    assert (shown.mode, shown.reason) == ("closed", "port 35000 cannot be opened: in use")

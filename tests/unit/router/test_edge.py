from __future__ import annotations

import pytest

from piccolod.errors import Invalid, NotSupported
from piccolod.protocol.router import Endpoint, RegisterAppRoute, RouteListener
from services.router.edge import route_of, state_of
from services.router.flow import Port
from services.router.route import ClientIp, Leader, Mode, Protocol, Target


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


def tunnel(**fields: object) -> RegisterAppRoute:
    given = {"mode": "tunnel", "resource": "", "token": 0, "endpoints": (), "leader": "n2", "leader_addr": "10.77.0.2:7443"}
    return request(**given | fields)


def test_a_tunnel_knows_its_leader_and_shows_it() -> None:
    route = route_of(tunnel())
    assert (route.mode, route.leader) == (Mode.TUNNEL, Leader(node="n2", address="10.77.0.2", port=7443))
    port = Port("notes", route.listeners[0])
    port.mode, port.leader, port.trouble = Mode.TUNNEL, route.leader, "n2: its gate is shut"
    shown = state_of(route, port, "")
    assert (shown.mode, shown.target, shown.reason) == ("tunnel", "n2 (10.77.0.2:7443)", "n2: its gate is shut")


def test_the_address_of_a_leader_may_be_ipv6() -> None:
    leader = route_of(tunnel(leader_addr="[fd00::2]:7443")).leader
    assert leader is not None
    assert (leader.address, str(leader)) == ("fd00::2", "n2 ([fd00::2]:7443)")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"leader": ""}, "leader"),
        ({"leader": "N 2"}, "leader"),
        ({"leader_addr": ""}, "leader_addr"),
        ({"leader_addr": "n2.home:7443"}, "leader_addr"),
        ({"leader_addr": "10.77.0.2:0"}, "leader_addr"),
        ({"leader_addr": "10.77.0.2:70000"}, "leader_addr"),
        ({"resource": "app:notes"}, "resource"),
        ({"token": 9}, "resource"),
        ({"endpoints": (Endpoint(listener="web", address="10.88.0.2", port=80),)}, "resource"),
    ],
)
def test_a_mistake_in_a_tunnel_is_named_with_its_place(fields: dict[str, object], path: str) -> None:
    with pytest.raises(Invalid) as caught:
        route_of(tunnel(**fields))
    assert [problem.path for problem in caught.value.errors] == [path]


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


@pytest.mark.parametrize("fields", [{"mode": "magic"}, {"listeners": (listener(flow="udp"),)}])
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

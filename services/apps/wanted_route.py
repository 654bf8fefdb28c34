"""The route that a plan asks for: where the clients of an app go from this node. Pure."""

from __future__ import annotations

from piccolod.leadership.resources import resource_for_app
from piccolod.protocol.router import Endpoint, RegisterAppRoute, RouteListener
from services.apps.desired import Desired, Version
from services.apps.situation import Plan, Route, Situation


def route_of(
    desired: Desired, version: Version, made: Plan, seen: Situation, *, own: str, last_epoch: int
) -> RegisterAppRoute:  # fmt: skip
    """`version` is the one that runs. `own`: this node's address; `last_epoch`: of the app's last term that was seen here."""
    term, container, manifest = seen.term, seen.container, version.manifest
    leader = seen.leader if made.route is Route.TUNNEL else None
    guarded = manifest.is_led and leader is None
    address = container.address if container is not None and made.route is Route.LOCAL else ""
    return RegisterAppRoute(
        app=desired.name,
        mode=made.route,
        epoch=_epoch(seen, last_epoch, led=manifest.is_led),
        resource=resource_for_app(desired.name) if guarded else "",
        token=term.token if guarded and term is not None else 0,
        leader_addr=leader.peer if leader is not None else own,
        leader=leader.node if leader is not None else "",
        listeners=tuple(
            RouteListener(
                name=item.name,
                public_port=desired.ports[item.name],
                flow=item.flow,
                protocol=item.protocol,
                client_ip=item.client_ip,
                hold_s=item.hold_s,
            )
            for item in manifest.listeners
            if item.name in desired.ports
        ),
        endpoints=tuple(
            Endpoint(listener=item.name, address=address, port=item.guest_port) for item in manifest.listeners if address
        ),
    )


def _epoch(seen: Situation, last_epoch: int, *, led: bool) -> int:
    if led and seen.term is not None:
        return seen.term.epoch
    return max(last_epoch, seen.leader.epoch if seen.leader is not None else 0)

"""The host's end of an app's network, and whether it still leads to the container. Pure.

A podman that is killed while it makes or takes away a network leaves it half made: netavark (1.4) takes an interface that
is there for whole and gives it neither address nor route, however often the container is started again.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import msgspec


class Bridge(msgspec.Struct, frozen=True):
    """One interface as the kernel has it. `routes`: the networks that this host reaches through it."""

    up: bool = True
    carrier: bool = True  # the end of a container is attached to it and alive
    routes: tuple[IPv4Network, ...] = ()

    def leads_to(self, address: str) -> bool:
        return any(IPv4Address(address) in network for network in self.routes)


def severed(bridge: Bridge | None, address: str) -> str:
    """Why the router cannot reach a container that runs at `address`; empty when nothing is in the way."""
    if not address:
        return "it has no address in its network"
    if bridge is None:
        return "the bridge of its network is gone"
    if not bridge.up:
        return "the bridge of its network is down"
    if not bridge.leads_to(address):
        return f"the bridge of its network has no route to {address}"
    if not bridge.carrier:
        return "it is not attached to the bridge of its network"
    return ""

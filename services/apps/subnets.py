"""A network range for an app that overlaps nothing on this host. Pure but for one small file."""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Final

from piccolod.errors import Failed

# podman's own default pool (containers/common, libnetwork/config): what people already keep free.
_POOL: Final = tuple(IPv4Network(f"10.{second}.0.0/16") for second in range(89, 99))
_PREFIX: Final = 24


def choose(app: str, used: Iterable[IPv4Network]) -> tuple[str, str]:
    """(subnet, gateway). Begins at a place of the app's own, so that it mostly gets the same one again."""
    taken = list(used)
    everything = [subnet for block in _POOL for subnet in block.subnets(new_prefix=_PREFIX)]
    start = zlib.crc32(app.encode()) % 256
    for subnet in everything[start:] + everything[:start]:
        if not any(subnet.overlaps(other) for other in taken):
            return str(subnet), str(subnet.network_address + 1)
    raise Failed("no network range is free for another app", hint="`podman network ls` in this node's containers")


def host_routes(file: Path = Path("/proc/self/net/route"), interface: str = "") -> list[IPv4Network]:
    """Where this host already sends packets, without its default route (proc_net(5): hexadecimal, host byte order).

    `interface`: only what goes through this one.
    """
    found = []
    for line in file.read_text(encoding="ascii").splitlines()[1:]:
        through, destination, _, _, _, _, _, mask, *_ = line.split()
        if int(mask, 16) and interface in ("", through):
            found.append(IPv4Network((_address(destination), _address(mask)), strict=False))
    return found


def of_networks(networks: Iterable[dict[str, Any]]) -> list[IPv4Network]:
    """The ranges of podman's networks."""
    subnets = (item["subnet"] for network in networks for item in network.get("subnets") or ())
    return [IPv4Network(subnet) for subnet in subnets if ":" not in subnet]


def _address(text: str) -> str:
    return str(ipaddress.IPv4Address(int(text, 16).to_bytes(4, "little")))

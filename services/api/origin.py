"""Where a call comes from, as far as that can be trusted. Pure.

Forwarded headers count only from the proxies that the admin named. A call that came through any proxy is never local:
one that forwards what a client invented would otherwise make the whole internet `loopback`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of the unix socket (SO_PEERCRED)."""

    pid: int
    uid: int


@dataclass(frozen=True, slots=True)
class Origin:
    source: str  # for limits and the audit: an address, or `uid:0`
    local: bool  # the unix socket, or loopback without any proxy
    secure: bool  # the client spoke TLS
    peer: Peer | None = None


def proxies(trusted: Sequence[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(item, strict=False) for item in trusted)


def origin_of(peer: Peer | None, client: str, secure: bool, headers: Mapping[str, str], trusted: tuple[Network, ...]) -> Origin:
    """`client` is the address of the TCP connection; `headers` have lowercase names."""
    if peer is not None:
        return Origin(f"uid:{peer.uid}", True, False, peer)
    address = _address(client)
    if address is None:
        return Origin("unknown", False, secure)
    if not _within(address, trusted):
        direct = not any(name in headers for name in _FORWARDED)
        return Origin(str(address), address.is_loopback and direct, secure)
    secure = secure or headers.get("x-forwarded-proto", "").strip().lower() == "https"
    return Origin(str(_behind(address, headers.get("x-forwarded-for", ""), trusted)), False, secure)


def _behind(proxy: Address, forwarded_for: str, trusted: tuple[Network, ...]) -> Address:
    """The nearest address that is no trusted proxy: what stands further left may be the client's invention."""
    nearest = proxy
    for text in reversed(forwarded_for.split(",")):
        address = _address(text.strip())
        if address is None:
            break
        nearest = address
        if not _within(address, trusted):
            break
    return nearest


def own_host(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header can be ours without DNS: a page of another name that resolves here must not act as us."""
    name = host_name(host)
    return name in names or name == "localhost" or name.endswith(".localhost") or _address(name) is not None


def same_origin(origin: str, host: str) -> bool:
    """Whether a browser says that the page that calls is one of ours."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:
        return False


def host_name(host: str) -> str:
    """`[::1]:8080` -> `::1`, `Piccolo.local:80` -> `piccolo.local`."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _within(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address.version == network.version and address in network for network in networks)

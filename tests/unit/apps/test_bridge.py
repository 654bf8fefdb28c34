"""Whether the host's end of an app's network leads to its container."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from services.apps.bridge import Bridge, severed

ADDRESS = "10.89.7.2"
ROUTES = (IPv4Network("10.89.7.0/24"),)


def test_a_bridge_with_the_route_and_a_container_leads_there() -> None:
    assert severed(Bridge(routes=ROUTES), ADDRESS) == ""


@pytest.mark.parametrize(
    ("bridge", "reason"),
    [
        (None, "is gone"),
        (Bridge(up=False, routes=ROUTES), "is down"),
        (Bridge(), "no route to 10.89.7.2"),
        (Bridge(routes=(IPv4Network("10.89.8.0/24"),)), "no route to 10.89.7.2"),
        (Bridge(carrier=False, routes=ROUTES), "not attached"),
    ],
)
def test_what_is_missing_is_named(bridge: Bridge | None, reason: str) -> None:
    assert reason in severed(bridge, ADDRESS)


def test_a_container_without_an_address_is_named() -> None:
    assert "no address" in severed(Bridge(routes=ROUTES), "")

"""Which public port a listener gets."""

from __future__ import annotations

import pytest

from piccolod.errors import Conflict
from services.apps.manifest import Manifest
from services.apps.ports import assign, document_id, port_of
from services.apps.validate import validate

POOL = range(35000, 35004)


def app(*ports: str, name: str = "a") -> Manifest:
    listeners = ", ".join(f"{{name: l{i}, guest_port: {80 + i}, public_port: {port}}}" for i, port in enumerate(ports))
    return validate(f"name: {name}\nimage: b\nlisteners: [{listeners}]\n").manifest


def test_automatic_ports_are_the_lowest_that_nobody_has() -> None:
    assert assign(app("auto", "auto"), {35000: "b"}, {}, POOL, lambda port: port != 35001) == {"l0": 35002, "l1": 35003}


def test_a_listener_keeps_its_port() -> None:
    assert assign(app("auto", "auto"), {35002: "a"}, {"l1": 35002}, POOL, lambda _: True) == {"l0": 35000, "l1": 35002}


def test_an_explicit_port_is_taken_from_the_automatic_ones() -> None:
    assert assign(app("auto", "35000"), {}, {"l0": 35000}, POOL, lambda _: True) == {"l0": 35001, "l1": 35000}


def test_a_port_of_another_app_is_refused_by_name() -> None:
    with pytest.raises(Conflict) as caught:
        assign(app("80", "81"), {80: "b", 81: "c"}, {}, POOL, lambda _: True)
    assert [p.path for p in caught.value.errors] == ["listeners[0].public_port", "listeners[1].public_port"]
    assert "belongs to app b" in caught.value.detail


def test_a_full_pool_is_said() -> None:
    with pytest.raises(Conflict, match="no public port is free"):
        assign(app(*["auto"] * 5), {}, {}, POOL, lambda _: True)


def test_the_document_is_named_by_the_port() -> None:
    assert port_of(document_id(35000)) == 35000

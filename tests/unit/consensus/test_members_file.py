"""Whom a member knows, and whom it knew before it was recovered."""

from __future__ import annotations

from pathlib import Path

import pytest

from piccolod.paths import Paths
from piccolod.protocol.cluster import KnownMember
from services.consensus import members_file


def at(place: str) -> KnownMember:
    return KnownMember(address=place, client_url=f"https://{place}:2379", rpc="")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(state=tmp_path, run=tmp_path)
    paths.cluster.mkdir()
    members_file.write(paths, {"n1": at("1"), "n2": at("2"), "n3": at("3")})
    return paths


def test_who_is_none_any_more_is_still_known_until_he_joins_anew(paths: Paths) -> None:
    members_file.begin_anew(paths, {"n1": at("1")})
    assert members_file.read(paths) == {"n1": at("1")}
    assert members_file.with_former(paths) == {"n1": at("1"), "n2": at("2"), "n3": at("3")}
    members_file.write(paths, {"n1": at("1"), "n2": at("4")})
    assert members_file.with_former(paths) == {"n1": at("1"), "n2": at("4"), "n3": at("3")}


def test_a_second_recovery_forgets_nobody_of_the_first(paths: Paths) -> None:
    members_file.begin_anew(paths, {"n1": at("1")})
    members_file.write(paths, {"n1": at("1"), "n2": at("4")})
    for _ in range(2):
        members_file.begin_anew(paths, {"n1": at("1")})
    assert members_file.with_former(paths) == {"n1": at("1"), "n2": at("4"), "n3": at("3")}


def test_without_a_recovery_there_are_no_former_ones(paths: Paths) -> None:
    assert members_file.with_former(paths) == members_file.read(paths)

"""Who does not become a member is told why, each in its own words, and stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from piccolod.pki import token as tokens
from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.disk import Disk
from tests.bed.forming import found, join, members, said, token, unlock
from tests.bed.machine import Machine
from tests.node import Node, until


@pytest.fixture(scope="module")
def bed(cluster: Callable[[int], Cluster]) -> Cluster:
    """n1 is a cluster, n3 is another one, n2 is nobody's yet."""
    made = cluster(3)
    made.start()
    found(made["n1"])
    found(made["n3"])
    return made


@pytest.fixture
def n2(bed: Cluster) -> Iterator[Machine]:
    yield bed["n2"]
    assert bed["n2"].get("/cluster")["mode"] == "alone"
    assert not (bed["n2"].state / "cluster").exists()
    assert "etcd" not in bed["n2"].modules()


def refused(machine: Machine, by: Machine, text: str, code: int, words: str, *options: str) -> None:
    done = machine.ctl("cluster", "join", by.address, "--token", text, *options)
    assert done.returncode == code, done.stderr
    assert words in done.stderr


def test_a_token_that_was_cut_or_mistyped_is_found_before_anything_is_sent(bed: Cluster, n2: Machine) -> None:
    text = token(bed["n1"])
    refused(n2, bed["n1"], text[:-1], 8, "this is no join token, or a part of it is missing")
    refused(n2, bed["n1"], text[:-1] + ("0" if text[-1] != "0" else "1"), 8, "has a typo")


def test_a_token_of_another_cluster_is_shown_to_nobody(bed: Cluster, n2: Machine) -> None:
    text = token(bed["n3"])
    refused(n2, bed["n1"], text, 9, "it is not of the cluster that the token names")
    known = {each["id"]: each["state"] for each in bed["n3"].get("/cluster/tokens")}
    assert known[tokens.parse(text).id] == "open"


def test_a_secret_that_was_never_made_or_was_revoked_opens_nothing(bed: Cluster, n2: Machine) -> None:
    real = tokens.parse(token(bed["n1"]))
    refused(n2, bed["n1"], tokens.issue(real.fingerprint).text, 9, "this join token is not one of this cluster")
    said(bed["n1"], "cluster", "tokens", "revoke", real.id, "-y")
    refused(n2, bed["n1"], real.text, 9, "revoked")


def test_a_token_is_for_one_role(bed: Cluster, n2: Machine) -> None:
    refused(n2, bed["n1"], token(bed["n1"], "--witness"), 9, "witness")


def test_a_member_that_cannot_be_reached_is_named(bed: Cluster, n2: Machine) -> None:
    faults.partition(bed, ["n2"], ["n1"])
    try:
        done = n2.ctl("cluster", "join", bed["n1"].address, "--token", token(bed["n1"]))
    finally:
        faults.heal(bed)
    assert done.returncode == 1
    assert f"{bed['n1'].address}:7444" in done.stderr


def test_an_address_of_nobody_but_this_machine_founds_nothing() -> None:
    with Node() as node:
        node.start()
        assert node.ctl("cluster", "init").returncode == 8, "before anything else: it cannot be mended by a password"
        node.unlock()
        done = node.ctl("cluster", "init")
        assert done.returncode == 8
        assert "other machines cannot reach this one at 127.0.0.1" in done.stderr


def test_a_store_that_is_not_set_up_or_locked_founds_nothing(bed: Cluster, n2: Machine) -> None:
    done = n2.ctl("cluster", "init")
    assert (done.returncode, "no password yet" in done.stderr) == (1, True), done.stderr
    n2.unlock()
    said(n2, "lock")
    done = n2.ctl("cluster", "init")
    assert (done.returncode, "unlock" in done.stderr) == (4, True), done.stderr
    until(n2.all_ready, "every module is back after the lock", 20)
    n2.unlock()


def test_a_node_with_a_store_of_its_own_gives_it_up_only_when_told_to(bed: Cluster, n2: Machine) -> None:
    assert n2.api("PUT", "/settings", {"title": "mine"}).status == 200
    text = token(bed["n1"])
    refused(n2, bed["n1"], text, 1, "--discard-local")
    assert n2.get("/settings")["title"] == "mine"
    assert {each["id"]: each["state"] for each in bed["n1"].get("/cluster/tokens")}[tokens.parse(text).id] == "open"


def test_told_to_it_joins_and_its_store_is_set_aside(bed: Cluster) -> None:
    n1, n2 = bed["n1"], bed["n2"]
    assert n1.api("PUT", "/settings", {"title": "ours"}).status == 200
    said(n2, "cluster", "join", n1.address, "--token", token(n1), "--discard-local", "-y", timeout_s=130)
    unlock(n2)
    assert n2.get("/settings")["title"] == "ours"
    assert [file.name for file in n2.state.glob("store.before-*/control.db")] == ["control.db"]


def test_a_machine_made_anew_takes_its_old_name_only_after_that_was_freed(bed: Cluster) -> None:
    n1, n2 = bed["n1"], bed["n2"]
    assert "n2" in members(n1)
    faults.power_off(n2)
    n2.disk = Disk(n2.disk.image, 2048)
    faults.power_on(n2, 60)
    refused(n2, n1, token(n1), 1, "nodes remove n2")
    assert n2.get("/cluster")["mode"] == "alone"
    said(n1, "nodes", "remove", "n2", "-y")
    assert "n2" not in members(n1)
    join(n2, n1)
    assert sorted(members(n2)) == ["n1", "n2"]

"""A join in whose middle the power goes, or the one that lets in: a node alone or a member, and the cluster goes on either way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from piccolod.pki import token as tokens
from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.forming import asking, found, is_alone, members, said, token, unlock
from tests.bed.machine import Machine
from tests.node import until

pytestmark = pytest.mark.timeout(240)

ANYWAY = ("--discard-local", "-y")  # what it wrote while it was alone


@pytest.fixture(scope="module")
def pair(cluster: Callable[[int], Cluster]) -> Cluster:
    """n1 is a cluster of one, n2 nobody's; and n2 is that again before each test."""
    made = cluster(2)
    made.start()
    found(made["n1"])
    return made


@pytest.fixture(autouse=True)
def _apart(pair: Cluster) -> None:
    n1, n2 = pair.machines
    if (n2.state / "cluster" / "mode").exists():
        said(n2, "cluster", "leave", "-y")
        until(lambda: is_alone(n2), "n2 is alone again", 30)
    if "n2" in members(n1):
        said(n1, "nodes", "remove", "n2", "-y")


def joining(machine: Machine, by: Machine, text: str) -> threading.Thread:
    return asking(lambda: machine.ctl("cluster", "join", by.address, "--token", text, *ANYWAY, timeout_s=130))


def becomes_member(machine: Machine, by: Machine, alone: str = "") -> None:
    """What a member must be: seen alive by the others, unlocked by the cluster's password, with the cluster's log.

    `alone`: the instance of persistence that took this node for alone; none such may be left.
    """
    until(lambda: machine.is_replaced("persistence", alone), "persistence is that of a member", 30)
    unlock(machine)
    until(lambda: members(by).get(machine.name, {}).get("state") == "alive", f"{machine.name} is alive", 30)
    until(machine.all_ready, "every module ready", 20)
    rev = by.api("PUT", "/settings", {"title": f"with {machine.name}"}).headers["piccolo-rev"]
    read = machine.api("GET", "/settings", headers={"Piccolo-Min-Rev": rev})
    assert read.json["title"] == f"with {machine.name}", read


def term(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = machine.get("/leadership/kernel")
    return {name: found[name] for name in ("node", "epoch")}


def test_a_joiner_that_loses_power_in_the_middle_is_alone_or_a_member(pair: Cluster) -> None:
    n1, n2 = pair.machines
    before = term(n1)
    asked = joining(n2, n1, token(n1))
    until((n2.state / "cluster" / "etcd.json").exists, "the join has come half way", 30, 0.001)
    faults.power_off(n2)
    asked.join(40)
    assert not asked.is_alive()
    faults.power_on(n2, within_s=0)
    n2.wait_up(60)
    if (n2.state / "cluster" / "mode").exists():
        becomes_member(n2, n1)
    else:
        until(lambda: not (n2.state / "cluster").exists() and is_alone(n2), "nothing is left of it", 20)
    assert term(n1) == before


def test_the_one_that_lets_it_in_dies_and_the_joiner_becomes_a_member_all_the_same(pair: Cluster) -> None:
    """It asks again with the same key, and is known by then: the token is spent, and etcd may not have it yet."""
    n1, n2 = pair.machines
    before, text = term(n1), token(n1)
    instance, store = n1.instance("consensus"), n2.instance("persistence")

    def spent() -> bool:
        return {each["id"]: each["state"] for each in n1.get("/cluster/tokens")}[tokens.parse(text).id] != "open"

    asked = joining(n2, n1, text)
    until(spent, "n1 has begun to let it in", 30, 0.001)
    faults.kill(n1, "consensus")
    asked.join(130)
    assert not asked.is_alive()
    until(lambda: n1.is_replaced("consensus", instance), "consensus is there again", 20)
    until(lambda: (n2.state / "cluster" / "mode").exists(), "n2 is a member", 30)
    becomes_member(n2, n1, store)
    assert term(n1) == before


def test_after_all_that_the_node_can_still_become_a_member(pair: Cluster) -> None:
    n1, n2 = pair.machines
    said(n2, "cluster", "join", n1.address, "--token", token(n1), *ANYWAY, timeout_s=130)
    becomes_member(n2, n1)

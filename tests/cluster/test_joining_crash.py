"""A crash at any step of `cluster join` leaves a node alone, which the same command with the same token makes a member."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.forming import asking, found, is_alone, members, said, token, unlock
from tests.bed.machine import Machine
from tests.node import until

pytestmark = pytest.mark.timeout(240)

# What consensus writes on the way, in order, below the state folder; `etcd`: its member of etcd has joined the others.
STEPS = ("consensus/join.json", "cluster/node.key", "cluster/etcd.json", "etcd", "cluster/mode")


@pytest.fixture(scope="module")
def pair(cluster: Callable[[int], Cluster]) -> Cluster:
    made = cluster(2)
    made.start()
    found(made["n1"])
    return made


def reached(machine: Machine, step: str) -> bool:
    if step == "etcd":
        return machine.modules().get("etcd", {}).get("state") == "ready"
    return (machine.state / step).exists()


def has_joined(machine: Machine, by: Machine) -> bool:
    """And none of its modules takes it for a node alone any more."""
    return members(by).get(machine.name, {}).get("state") == "alive" and machine.all_ready()


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_of_consensus_while_it_joins_costs_one_more_command(pair: Cluster, step: str) -> None:
    n1, n2 = pair["n1"], pair["n2"]
    text, instance = token(n1), n2.instance("consensus")
    body = {"address": n1.address, "token": text}
    asked = asking(lambda: n2.api("POST", "/cluster/join", body, timeout_s=60))
    until(lambda: reached(n2, step), f"the join has come to {step}", 30, 0.001)
    faults.kill(n2, "consensus")
    asked.join(70)
    assert not asked.is_alive()
    until(lambda: n2.is_replaced("consensus", instance), "consensus is there again", 20)
    if not (n2.state / "cluster/mode").exists():
        until(lambda: not (n2.state / "cluster").exists(), "what was left is wiped", 15)
        said(n2, "cluster", "join", n1.address, "--token", text, timeout_s=130)
    until(lambda: has_joined(n2, n1), "it is a member", 40)
    unlock(n2)
    assert not (n2.state / "consensus/join.json").exists()
    assert n1.api("PUT", "/settings", {"title": f"after {step}"}).status == 200
    until(lambda: n2.get("/settings")["title"] == f"after {step}", "it has what the others have", 20)
    said(n2, "cluster", "leave", "-y")
    until(lambda: is_alone(n2), "it is alone again", 40)

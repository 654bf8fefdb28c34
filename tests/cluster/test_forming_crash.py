"""A crash at any step of `cluster init` leaves a node alone as it was, or a member; never something between."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.forming import asking, members
from tests.bed.machine import Machine
from tests.node import until

# What consensus writes on the way, in order; each is there before the next step begins.
STEPS = ("node.key", "timing.json", "etcd.json", "etcd", "mode")


@pytest.fixture(scope="module")
def pair(cluster: Callable[[int], Cluster]) -> Cluster:
    made = cluster(2)
    made.start()
    made.unlock()
    return made


@pytest.fixture
def lone(pair: Cluster) -> Machine:
    return pair["n1"]


def title(machine: Machine) -> str:
    return str(machine.get("/settings")["title"])


def reached(machine: Machine, step: str) -> bool:
    if step == "etcd":
        return machine.modules().get("etcd", {}).get("state") == "ready"
    return (machine.state / "cluster" / step).exists()


def init(machine: Machine) -> threading.Thread:
    return asking(lambda: machine.api("POST", "/cluster/init", {"profile": "fast"}, timeout_s=30))


def test_a_disk_that_hesitates_is_not_taken_for_a_consensus_that_hangs(pair: Cluster) -> None:
    n2 = pair["n2"]
    asked = init(n2)
    until(lambda: reached(n2, "node.key"), "init writes its files", 20, 0.001)
    faults.freeze_disk(n2)
    try:
        asked.join(1.0)  # beats are missed after 0.4 s
    finally:
        faults.thaw_disk(n2)
    asked.join(40)
    until(lambda: members(n2).get("n2", {}).get("leads_kernel"), "it is a member and leads", 30)
    assert [death["reason"] for death in n2.get("/modules/consensus/deaths") if not death["planned"]] == []


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_of_consensus_leaves_a_node_alone_or_a_member(lone: Machine, step: str) -> None:
    written = lone.api("PUT", "/settings", {"title": f"before {step}"})
    assert written.status == 200, written
    instance, store = lone.instance("consensus"), lone.instance("persistence")
    asked = init(lone)
    until(lambda: reached(lone, step), f"init has come to {step}", 20, 0.001)
    faults.kill(lone, "consensus")
    asked.join(40)
    until(lambda: lone.is_replaced("consensus", instance), "consensus is there again", 20)
    if (lone.state / "cluster" / "mode").exists():
        until(lambda: members(lone).get("n1", {}).get("leads_kernel"), "it is a member and leads", 30)
        assert step in ("etcd", "mode"), "not before the log had moved"
        until(lambda: lone.is_replaced("persistence", store), "no process is left that takes this node for alone", 20)
        until(lambda: lone.api("GET", "/settings").status == 200, "its store is open", 20)
    else:
        until(lambda: not (lone.state / "cluster").exists(), "nothing is left of it", 15)
        until(lambda: not (lone.state / "etcd").exists() and "etcd" not in lone.modules(), "no etcd is left", 15)
        assert lone.get("/cluster")["mode"] == "alone"
    assert title(lone) == f"before {step}"
    until(lambda: lone.api("PUT", "/settings", {"title": "after"}).status == 200, "a write is accepted", 20)
    if (lone.state / "cluster" / "mode").exists():
        rev = lone.get("/store/revision")["rev"]
        until(lambda: members(lone)["n1"]["rev"] >= rev, "etcd has that write", 10)


def test_after_all_that_the_node_can_still_become_a_member(lone: Machine) -> None:
    if not (lone.state / "cluster" / "mode").exists():
        done = lone.ctl("cluster", "init", "--profile", "fast", timeout_s=90)
        assert done.returncode == 0, done.stderr
    assert members(lone)["n1"]["leads_kernel"]
    assert lone.get("/cluster")["profile"] == "fast"

"""Three machines become one by the commands of a person; what is written is on each of them, and outlives the leader's machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.forming import join, leader, members, said, token, unlock, wait_leader
from tests.bed.machine import Machine
from tests.node import Reply, until

# `fast` takes 2.8 s from a crash to a claim. The rest is room for two processors under many nodes.
_FAILOVER_S = 15.0


@pytest.fixture(scope="module")
def three(formed: Callable[[int], Cluster]) -> Cluster:
    return formed(3)


@pytest.fixture(autouse=True)
def _whole_again(three: Cluster) -> None:
    for machine in three.machines:
        if not machine.is_on:
            faults.power_on(machine, within_s=60)
            unlock(machine)
    wait_leader(three)


def write(machine: Machine, title: str) -> int:
    """The rev of an acknowledged write."""
    reply = machine.api("PUT", "/settings", {"title": title}, timeout_s=10)
    assert reply.status == 200, reply
    return int(reply.headers["piccolo-rev"])


def read(machine: Machine, rev: int) -> str:
    reply = machine.api("GET", "/settings", headers={"Piccolo-Min-Rev": str(rev)})
    assert reply.status == 200, reply
    return str(reply.json["title"])


def digests(cluster: Cluster) -> set[tuple[int, str]]:
    revisions = [machine.get("/store/revision") for machine in cluster.machines]
    return {(each["rev"], each["digest"]) for each in revisions}


def test_every_member_sees_the_same_cluster(three: Cluster) -> None:
    for machine in three.machines:
        seen = members(machine)
        assert sorted(seen) == ["n1", "n2", "n3"]
        until(lambda machine=machine: all(each["voter"] for each in members(machine).values()), "three votes", 20)
        assert [each["state"] for each in members(machine).values()] == ["alive"] * 3
        assert [name for name, each in seen.items() if each["leads_kernel"]] == [wait_leader(three).name]
        assert machine.get("/cluster")["warnings"] == []
    assert said(three["n2"], "cluster", "list", "-o", "name").split() == ["n1", "n2", "n3"]
    assert said(three["n3"], "nodes", "list", "-o", "name").split() == ["n1", "n2", "n3"]


def test_what_is_written_on_the_leader_is_read_on_every_node(three: Cluster) -> None:
    rev = write(wait_leader(three), "Home")
    assert [read(machine, rev) for machine in three.machines] == ["Home"] * 3
    until(lambda: len(digests(three)) == 1, "one digest", 10)


def test_a_write_on_a_follower_reaches_the_leader_or_is_told_who_that_is(three: Cluster) -> None:
    leading = wait_leader(three)
    follower = next(machine for machine in three.machines if machine is not leading)
    rev = write(follower, "by a follower's socket")
    assert read(leading, rev) == "by a follower's socket"


def test_a_member_does_not_found_and_does_not_join(three: Cluster) -> None:
    for command in (["init"], ["join", three["n1"].address, "--token", token(wait_leader(three))]):
        done = three["n2"].ctl("cluster", *command)
        assert done.returncode == 1
        assert "n2 is a member of the cluster" in done.stderr


def test_the_kernel_is_handed_over_by_request_asked_of_any_node(three: Cluster) -> None:
    leading = wait_leader(three)
    to = next(machine for machine in three.machines if machine is not leading)
    rev = write(leading, "before the switchover")
    said(to, "leaders", "switchover", "kernel", "--to", to.name)
    until(lambda: leader(three) is to, f"{to.name} leads", 10)
    assert write(to, "after the switchover") > rev
    last = to.get("/leadership/history?resource=kernel&limit=1")[0]
    assert (last["from_node"], last["to_node"], last["reason"]) == (leading.name, to.name, "switchover")


def test_while_the_cluster_is_paused_nothing_moves(three: Cluster) -> None:
    leading = wait_leader(three)
    to = next(machine for machine in three.machines if machine is not leading)
    said(to, "cluster", "pause")
    try:
        until(lambda: "paused" in str(leading.get("/cluster")["warnings"]), "the leader knows of the pause", 5)
        done = leading.ctl("leaders", "switchover", "kernel", "--to", to.name)
        assert done.returncode == 1
        assert "paused" in done.stderr
        assert leader(three) is leading
    finally:
        said(leading, "cluster", "resume")
    until(lambda: leading.get("/cluster")["warnings"] == [], "the pause is over", 5)


def test_the_loss_of_the_leaders_machine_costs_seconds_and_no_acknowledged_write(three: Cluster) -> None:
    lost = wait_leader(three)
    rev = write(lost, "before")
    began = time.monotonic()
    faults.power_off(lost)
    survivors = [machine for machine in three.machines if machine is not lost]
    taken = until(lambda: _first_write(survivors, "after"), "another node accepts a write", _FAILOVER_S)
    print(f"accepted {time.monotonic() - began:.1f} s after the loss")
    assert taken > rev
    assert leader(three, lost) in survivors
    assert [read(machine, taken) for machine in survivors] == ["after"] * 2

    faults.power_on(lost, within_s=60)
    unlock(lost)
    assert read(lost, taken) == "after"
    until(lambda: len(digests(three)) == 1, "one digest on all three", 20)


def _first_write(machines: list[Machine], title: str) -> int:
    for machine in machines:
        with suppress(OSError):
            reply: Reply = machine.api("PUT", "/settings", {"title": title}, timeout_s=3)
            if reply.status == 200:
                return int(reply.headers["piccolo-rev"])
    return 0


def test_a_node_leaves_and_comes_back_under_its_name(three: Cluster) -> None:
    leading = wait_leader(three)
    leaver = next(machine for machine in three.machines if machine is not leading)
    said(leaver, "cluster", "leave", "-y")
    until(lambda: _is_alone(leaver), f"{leaver.name} is alone", 30)
    assert leaver.name not in members(leading)
    assert "loss of either" in leading.get("/cluster")["warnings"][0]
    until(lambda: leaver.all_ready() and _is_alone(leaver), f"{leaver.name} is whole", 30)
    join(leaver, leading)
    until(lambda: members(leading).get(leaver.name, {}).get("voter"), f"{leaver.name} has its vote again", 30)
    rev = write(wait_leader(three), "again")
    assert read(leaver, rev) == "again"


def _is_alone(machine: Machine) -> bool:
    with suppress(OSError):
        reply: Any = machine.api("GET", "/cluster", timeout_s=3)
        return bool(reply.status == 200 and reply.json["mode"] == "alone")
    return False

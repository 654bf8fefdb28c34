"""Two of three machines are gone for good: the third begins the cluster anew, and who comes back later does nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.forming import join, leader, members, said, wait_leader
from tests.bed.machine import Machine
from tests.node import until


@pytest.fixture(scope="module")
def three(formed: Callable[[int], Cluster]) -> Cluster:
    made = formed(3)
    until(lambda: all(each["voter"] for each in members(made["n1"]).values()), "three votes", 30)
    return made


def write(machine: Machine, title: str, within_s: float = 30.0) -> int:
    """The rev of the first write that is acknowledged."""

    def acknowledged() -> int:
        reply = machine.api("PUT", "/settings", {"title": title}, timeout_s=10)
        return int(reply.headers["piccolo-rev"]) if reply.status == 200 else 0

    rev: int = until(acknowledged, f"{machine.name} acknowledges a write", within_s, 0.2)
    return rev


def title(machine: Machine) -> str:
    return str(machine.get("/settings")["title"])


def trouble(machine: Machine) -> str:
    health: dict[str, Any] = machine.api("GET", "/health/detail").json
    return str(health["components"].get("consensus", {}).get("reason", ""))


def gen(machine: Machine) -> int:
    return int(json.loads((machine.state / "cluster" / "seen.json").read_bytes())["gen"])


def is_alone(machine: Machine) -> bool:
    with suppress(OSError):  # its api is restarted
        reply: Any = machine.api("GET", "/cluster", timeout_s=3)
        return bool(reply.status == 200 and reply.json["mode"] == "alone")
    return False


def digest(machine: Machine) -> tuple[int, str]:
    revision = machine.get("/store/revision")
    return revision["rev"], revision["digest"]


def test_while_etcd_has_its_quorum_nothing_is_recovered(three: Cluster) -> None:
    for options in ([], ["--force"]):
        done = three["n2"].ctl("cluster", "recover", *options)
        assert done.returncode == 1
        assert "nothing is to be recovered" in done.stderr
    assert len(members(three["n1"])) == 3


def test_the_one_that_is_left_begins_anew_with_everything_that_was_acknowledged(three: Cluster) -> None:
    n1, n2, n3 = three.machines
    rev = write(wait_leader(three), "before the fire")
    until(lambda: digest(n3)[0] >= rev, "n3 has it", 10)
    before, former = digest(n3), gen(n3)
    for burnt in (n1, n2):
        faults.power_off(burnt)
    until(lambda: "has no quorum" in trouble(n3), "n3 says that there is no quorum", 20)
    assert "cluster recover" in trouble(n3)

    asked = n3.ctl("cluster", "recover", "-o", "json", timeout_s=60)
    assert asked.returncode == 10, asked.stderr
    told = json.loads(asked.stdout)
    assert (told["done"], told["rev"], told["former"]) == (False, before[0], ["n1", "n2"])
    assert "n1" in told["lost"][0] and "n2" in told["lost"][0]
    assert digest(n3) == before and gen(n3) == former

    said(n3, "cluster", "recover", "--force", timeout_s=160)
    assert leader(three) is n3
    after = write(n3, "after the fire")
    assert after > rev
    assert gen(n3) > former
    assert sorted(members(n3)) == ["n3"]
    entries = {each["rev"]: each["digest"] for each in n3.get(f"/store/log?after={before[0] - 1}")}
    assert entries[before[0]] == before[1], "the chain goes on from what was there"
    assert n3.api("POST", "/store/check", timeout_s=60).json["ok"]
    assert list(n3.state.glob("etcd.before-*")), "the former etcd is kept aside"
    assert not (n3.state / "cluster" / "recovery.json").exists() or until(
        lambda: not (n3.state / "cluster" / "recovery.json").exists(), "the former members are forgotten", 20
    )


def test_one_that_comes_back_does_nothing_says_why_and_joins_again(three: Cluster) -> None:
    n1, _, n3 = three.machines
    faults.power_on(n1, within_s=60)
    until(lambda: "cluster leave" in trouble(n1), "n1 says what to do", 30)
    assert leader(three) is n3
    assert n1.api("GET", "/leader/kernel").status != 200
    left = n1.ctl("cluster", "leave", "--force", "-y", timeout_s=100)
    assert left.returncode == 0, left.stderr
    until(lambda: n1.all_ready() and is_alone(n1), "n1 is alone", 40)
    assert list(n1.state.glob("store.before-*")), "what it had is kept aside"
    join(n1, n3)
    rev = write(n3, "two again")
    until(lambda: digest(n1)[0] >= rev, "n1 follows", 20)
    assert title(n1) == "two again"


def test_a_node_alone_has_nothing_to_recover(cluster: Callable[[int], Cluster]) -> None:
    lone = cluster(1)
    lone.start()
    lone.unlock()
    done = lone["n1"].ctl("cluster", "recover", "--force")
    assert done.returncode == 1
    assert "is a node alone" in done.stderr

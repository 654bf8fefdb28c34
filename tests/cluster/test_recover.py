"""Two of three machines are gone for good: the third begins the cluster anew, and who comes back later does nothing."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.forming import (
    acknowledged,
    asked,
    digest,
    is_alone,
    join,
    leader,
    leads_etcd,
    members,
    opened,
    said,
    trouble,
    wait_leader,
)
from tests.bed.machine import Machine
from tests.node import until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def three(formed: Callable[[int], Cluster]) -> Cluster:
    made = formed(3)
    until(lambda: all(each["voter"] for each in members(made["n1"]).values()), "three votes", 30)
    return made


def title(machine: Machine) -> str:
    reply = asked(machine, "GET", "/settings")
    assert reply.status == 200, reply
    return str(reply.json["title"])


def gen(machine: Machine) -> int:
    return int(json.loads((machine.state / "cluster" / "seen.json").read_bytes())["gen"])


def test_while_etcd_has_its_quorum_nothing_is_recovered(three: Cluster) -> None:
    for options in ([], ["--force"]):
        done = three["n2"].ctl("cluster", "recover", *options)
        assert done.returncode == 1
        assert "nothing is to be recovered" in done.stderr
    assert len(members(three["n1"])) == 3


def test_the_one_that_is_left_begins_anew_with_everything_that_was_acknowledged(three: Cluster) -> None:
    n1, n2, n3 = three.machines
    rev = acknowledged(wait_leader(three), "before the fire")
    until(lambda: digest(n3)[0] >= rev, "n3 has it", 10)
    before, former = digest(n3), gen(n3)
    for burnt in (n1, n2):
        faults.power_off(burnt)
    until(lambda: "has no quorum" in trouble(n3), "n3 says that there is no quorum", 20)
    assert "cluster recover" in trouble(n3)

    done = n3.ctl("cluster", "recover", "-o", "json", timeout_s=60)
    assert done.returncode == 10, done.stderr
    told = json.loads(done.stdout)
    assert (told["done"], told["rev"], told["former"]) == (False, before[0], ["n1", "n2"])
    assert "n1" in told["lost"][0] and "n2" in told["lost"][0]
    assert digest(n3) == before and gen(n3) == former

    said(n3, "cluster", "recover", "--force", timeout_s=160)
    assert leader(three) is n3
    after = acknowledged(n3, "after the fire")
    assert after > rev
    assert gen(n3) > former
    assert sorted(members(n3)) == ["n3"]
    entries = {each["rev"]: each["digest"] for each in asked(n3, "GET", f"/store/log?after={before[0] - 1}").json}
    assert entries[before[0]] == before[1], "the chain goes on from what was there"
    assert asked(n3, "POST", "/store/check").json["ok"]
    assert list(n3.state.glob("etcd.before-*")), "the former etcd is kept aside"
    until(lambda: not (n3.state / "cluster" / "recovery.json").exists(), "the former members are forgotten", 20)


def test_two_that_come_back_have_a_quorum_and_lead_nothing(three: Cluster) -> None:
    n1, n2, n3 = three.machines
    rev = acknowledged(n3, "while they were off")
    for machine in (n1, n2):
        faults.power_on(machine, within_s=0)
    for machine in (n1, n2):
        machine.wait_up(60)
    until(lambda: any(leads_etcd(machine) for machine in (n1, n2)), "their etcd has its quorum again", 20)
    for machine in (n1, n2):
        opened(machine)
        until(lambda machine=machine: "recovered on n3" in trouble(machine), f"{machine.name} says what became of it", 15)
        assert "cluster leave --force" in trouble(machine)
    for _ in range(10):
        assert [asked(machine, "GET", "/leader/kernel").status for machine in (n1, n2, n3)] == [503, 503, 200]
        assert {asked(machine, "PUT", "/settings", {"title": "stale"}).status for machine in (n1, n2)} == {503}
    assert acknowledged(n3, "as before") > rev
    assert {title(n1), title(n2)} <= {"", "before the fire"}, "as old as what was on the disk when the power was lost"


def test_each_of_them_leaves_and_joins_again(three: Cluster) -> None:
    n1, n2, n3 = three.machines
    for machine in (n1, n2):
        said(machine, "cluster", "leave", "--force", "-y", timeout_s=100)
        until(lambda machine=machine: is_alone(machine), f"{machine.name} is alone", 40)
        assert list(machine.state.glob("store.before-*")), "what it had is kept aside"
        join(machine, n3)
    until(lambda: all(each["voter"] for each in members(n3).values()), "three votes", 30)
    rev = acknowledged(n3, "three again")
    for machine in (n1, n2):
        until(lambda machine=machine: digest(machine)[0] >= rev, f"{machine.name} follows", 20)
        assert title(machine) == "three again"


def test_a_node_alone_has_nothing_to_recover(cluster: Callable[[int], Cluster]) -> None:
    lone = cluster(1)
    lone.start()
    lone.unlock()
    done = lone["n1"].ctl("cluster", "recover", "--force")
    assert done.returncode == 1
    assert "is a node alone" in done.stderr

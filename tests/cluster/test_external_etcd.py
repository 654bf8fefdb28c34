"""A cluster whose etcd is its owner's, with TLS: two machines are enough to bear the loss of one, and neither runs an etcd."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.etcd import OwnersEtcd
from tests.bed.forming import could_lead, found, is_alone, join, leader, members, said, token, unlock, wait_leader
from tests.bed.machine import Machine
from tests.cluster.test_after_crash import after_crash, kill_tree
from tests.node import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("etcd"), reason="needs root and etcd")


@pytest.fixture(scope="module")
def bed(cluster: Callable[[int], Cluster]) -> Cluster:
    """n1 and n2 use the owner's etcd, n3 is one that would bring its own. All are on, none is a member yet."""
    return cluster(3)


@pytest.fixture(scope="module")
def etcd(bed: Cluster) -> Iterator[OwnersEtcd]:
    with OwnersEtcd(bed) as owners:
        for machine in bed.machines[:2]:
            owners.configure(machine)
        bed.start()
        yield owners


@pytest.fixture(scope="module")
def two(bed: Cluster, etcd: OwnersEtcd) -> Cluster:
    found(bed["n1"])
    join(bed["n2"], bed["n1"])
    return bed


def write(machine: Machine, title: str) -> str:
    """The rev of an acknowledged write."""
    reply = until(
        lambda: (answer := machine.api("PUT", "/settings", {"title": title}, timeout_s=10)).status == 200 and answer,
        f"{machine.name} writes", 20, 0.2,
    )  # fmt: skip
    return str(reply.headers["piccolo-rev"])


def title(machine: Machine, rev: str) -> str:
    return str(machine.api("GET", "/settings", headers={"Piccolo-Min-Rev": rev}).json["title"])


def test_an_etcd_that_does_not_answer_founds_nothing(bed: Cluster, etcd: OwnersEtcd) -> None:
    n1 = bed["n1"]
    n1.unlock()
    etcd.stop()
    try:
        done = n1.ctl("cluster", "init", "--profile", "fast")
    finally:
        etcd.start()
    assert done.returncode != 0
    assert f"etcd at {etcd.url.removeprefix('https://')} cannot be reached" in done.stderr
    assert "[etcd] in the configuration" in done.stderr
    assert n1.get("/cluster")["mode"] == "alone" and not (n1.state / "cluster").exists()
    assert etcd.names() == []


def test_two_members_have_one_store_in_it_and_none_of_their_own(two: Cluster, etcd: OwnersEtcd) -> None:
    n1, n2 = two["n1"], two["n2"]
    rev = write(n1, "By the first")
    assert title(n2, rev) == "By the first"
    rev = write(n2, "By the second")
    assert title(n1, rev) == "By the second"
    for machine in (n1, n2):
        assert "etcd" not in machine.modules() and machine.named("etcd") == []
        assert not (machine.state / "etcd").exists()
        assert {name: each["state"] for name, each in members(machine).items()} == {"n1": "alive", "n2": "alive"}
        shown = machine.get("/cluster")
        assert (shown["etcd"], shown["warnings"]) == ("external", [])
        assert not any(each["voter"] for each in shown["members"])
    assert "VOTE" not in said(n1, "cluster", "list")
    cluster = n1.get("/cluster")["cluster"]
    kept = etcd.names()
    assert all(key.startswith(f"/piccolo/{cluster}/") for key in kept)
    assert f"/piccolo/{cluster}/founding" not in kept


def test_who_would_keep_etcd_another_way_is_refused_and_its_token_stays(two: Cluster) -> None:
    n3, text = two["n3"], token(two["n1"])
    done = n3.ctl("cluster", "join", two["n1"].address, "--token", text)
    assert (done.returncode, "would bring a member of etcd of its own" in done.stderr) == (1, True), done.stderr
    assert 'mode = "external"' in done.stderr
    assert n3.get("/cluster")["mode"] == "alone" and "n3" not in members(two["n1"])
    assert text.split(".")[1] in said(two["n1"], "cluster", "tokens", "list")
    done = two["n1"].ctl("cluster", "tokens", "create", "--witness")
    assert (done.returncode, "a witness votes" in done.stderr) == (8, True), done.stderr


def test_a_member_goes_on_after_a_restart_also_when_its_configuration_names_no_etcd_any_more(two: Cluster) -> None:
    n1 = two["n1"]
    text = n1.config_file.read_text()
    for mode, told in (("auto", True), ("external", False)):
        n1.stop()
        n1.config_file.write_text(text if mode == "external" else text.partition("[etcd]")[0])
        n1.start()
        unlock(n1)
        wait_leader(two)
        assert title(n1, write(n1, f"In {mode}")) == f"In {mode}"
        words = "goes on with the endpoints of before" if told else "OK\n"
        until(lambda words=words: words in n1.ctl("health").stdout, f"its health says {words}", 15, 0.3)
        assert "etcd" not in n1.modules()


def test_the_machine_that_leads_is_lost_and_the_other_leads(two: Cluster) -> None:
    lost = wait_leader(two)
    other = two["n2"] if lost is two["n1"] else two["n1"]
    faults.power_off(lost)
    until(lambda: leader(two, lost) is other, f"{other.name} leads", 15)
    rev = write(other, "Alone now")
    faults.power_on(lost, 60)
    unlock(lost)
    assert title(lost, rev) == "Alone now"


def test_a_crash_of_all_on_the_machine_that_leads_is_told_to_the_other_by_the_hook(two: Cluster) -> None:
    """Two that keep etcd themselves would have no quorum left."""
    lost = wait_leader(two)
    other = two["n2"] if lost is two["n1"] else two["n1"]
    until(lambda: could_lead(other, lost), f"{other.name} could lead", 20)
    kill_tree(lost)
    done = after_crash(lost)
    assert (done.returncode, done.stdout) == (0, "piccolod: released kernel; ended the session\n"), done.stderr
    until(lambda: leader(two, lost) is other, f"{other.name} leads", 10)
    lost.start()
    unlock(lost)
    assert title(lost, write(other, "After the crash")) == "After the crash"


def test_one_leaves_and_is_a_node_alone(two: Cluster, etcd: OwnersEtcd) -> None:
    leading = wait_leader(two)
    leaving = two["n2"] if leading is two["n1"] else two["n1"]
    said(leaving, "cluster", "leave", "-y")
    until(lambda: is_alone(leaving), f"{leaving.name} is alone", 20)
    until(lambda: not (leaving.state / "cluster").exists(), "its folder is wiped", 20)
    assert list(members(leading)) == [leading.name]
    assert not [key for key in etcd.names() if key.endswith(("/node/" + leaving.name, "/sess/" + leaving.name))]
    write(leading, "One is enough")
    # It still has `[etcd]` of an owner, which a cluster that keeps its etcd itself does not take.
    n3 = two["n3"]
    found(n3)
    text = token(n3)
    until(leaving.all_ready, f"every module of {leaving.name} is back", 20)
    done = leaving.ctl("cluster", "join", n3.address, "--token", text)
    assert (done.returncode, 'has etcd.mode = "external"' in done.stderr) == (1, True), done.stderr
    assert leaving.get("/cluster")["mode"] == "alone" and list(members(n3)) == ["n3"]

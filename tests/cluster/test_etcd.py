"""A member's etcd on a whole machine: shown like its other programs, its alarms by name, and nothing of it on a node alone."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from piccolod import etcd_conf
from tests.bed.cluster import Cluster
from tests.bed.forming import wait_leader
from tests.bed.machine import Machine
from tests.bed.store import etcdctl
from tests.node import Node, until

pytestmark = [
    pytest.mark.root,
    pytest.mark.podman,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("etcd"), reason="needs root and etcd"),
]


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.fixture(scope="module")
def one(formed: Callable[[int], Cluster]) -> Cluster:
    return formed(1)


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as node:
        yield node


def kill(machine: Machine, name: str) -> None:
    """And waits until it is replaced."""
    before = machine.pid(name)
    os.kill(before, signal.SIGKILL)

    def replaced() -> bool:
        inside = machine.modules()[name]["pid"]
        return inside != 0 and machine.members().get(inside, before) != before

    until(replaced, f"{name} is replaced")


def test_a_node_alone_has_no_etcd_and_pays_nothing_for_it(node: Node) -> None:
    node.start()
    assert "etcd" not in node.modules()
    for name in ("consensus", "api"):
        assert "cygrpc" not in maps(node.pid(name))


def test_consensus_and_etcd_die_and_come_back_each_on_its_own(one: Cluster) -> None:
    machine = one.machines[0]
    assert "cygrpc" in maps(machine.pid("consensus"))
    assert etcdctl(machine, "put", "/a", "kept").returncode == 0
    for name, other in (("etcd", "consensus"), ("consensus", "etcd")):
        stays = machine.pid(other)
        kill(machine, name)
        machine.wait_up(20)
        wait_leader(one)
        assert machine.pid(other) == stays
    assert b"kept" in etcdctl(machine, "get", "/a").stdout


def test_it_is_listed_and_its_alarm_is_named_and_heals(one: Cluster) -> None:
    machine = one.machines[0]
    assert "etcd" in machine.ctl("modules", "list").stdout
    file = machine.state / "cluster" / "etcd.json"
    settings = etcd_conf.read(file)
    assert settings is not None
    etcd_conf.write(replace(settings, quota_bytes=16 << 20), file)
    kill(machine, "etcd")
    machine.wait_up(20)

    def full() -> bool:
        return etcdctl(machine, "put", "/big", stdin=b"x" * 1_000_000).returncode != 0

    until(full, "etcd takes no more", 30, 0)
    until(lambda: "alarm NOSPACE on n1" in machine.modules()["etcd"]["reason"], "the alarm is named", 15)
    until(lambda: machine.modules()["etcd"]["level"] == "OK", "it is well again", 30)
    until(lambda: etcdctl(machine, "put", "/small", "1").returncode == 0, "it takes more", 10)


def test_a_stop_ends_it_in_time(one: Cluster) -> None:
    machine = one.machines[0]
    assert machine.named("etcd")
    assert machine.stop(signal.SIGTERM) < 6
    assert not machine.named("etcd")

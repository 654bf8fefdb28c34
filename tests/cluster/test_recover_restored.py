"""Etcd of every member came from an old backup: all stop, and the cluster goes on from the member with the longest log."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.etcd import CLIENT_PORT, PEER_PORT
from tests.bed.forming import acknowledged, asked, digest, leader, members, opened, said, trouble, wait_leader
from tests.bed.machine import Machine
from tests.node import until

pytestmark = pytest.mark.timeout(240)


def etcdctl(machine: Machine, *words: str) -> None:
    folder = machine.state_dir / "cluster"
    tls = [f"--cacert={folder}/ca.pem", f"--cert={folder}/node.pem", f"--key={folder}/node.key"]
    at = f"--endpoints=https://{machine.address}:{CLIENT_PORT}"
    done = subprocess.run(
        machine.inside("env", "ETCDCTL_API=3", "etcdctl", at, *tls, *words),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def restore(cluster: Cluster, machine: Machine, backup: bytes) -> None:
    """As etcd's own page on disasters has it, on a machine that runs nothing yet."""
    copy, data = machine.state_dir / "backup", machine.state_dir / "etcd"
    machine.here(copy).write_bytes(backup)
    subprocess.run(machine.inside("rm", "-rf", str(data)), check=True, timeout=20)
    peers = {each.name: f"https://{each.address}:{PEER_PORT}" for each in cluster.machines}
    etcdctl(
        machine, "snapshot", "restore", str(copy), f"--data-dir={data}", f"--name={machine.name}",
        f"--initial-cluster={','.join(f'{name}={url}' for name, url in peers.items())}",
        f"--initial-advertise-peer-urls={peers[machine.name]}", "--initial-cluster-token=restored",
    )  # fmt: skip


def test_all_stop_and_the_one_with_the_longest_log_goes_on(formed: Callable[[int], Cluster]) -> None:
    three = formed(3)
    n1, n2, n3 = three.machines
    until(lambda: all(each["voter"] for each in members(n1).values()), "three votes", 30)
    saved: Path = n1.state_dir / "saved"
    etcdctl(n1, "snapshot", "save", str(saved))
    backup = n1.here(saved).read_bytes()
    faults.power_off(n3)
    wait_leader(three, n3)
    last = acknowledged(n1, "after the backup")
    for machine in (n1, n2):
        until(lambda machine=machine: digest(machine)[0] >= last, f"{machine.name} has it", 20)
        subprocess.run(["sync", "-f", str(machine.mount)], check=True, timeout=30)
        faults.power_off(machine)

    for machine in three.machines:
        machine.boot()
        restore(three, machine, backup)
    for machine in three.machines:
        machine.start(wait=False)
    for machine in three.machines:
        machine.wait_up(60)
        opened(machine)
        until(lambda machine=machine: "restored" in trouble(machine), f"{machine.name} believes nothing of it", 20)
        assert "cluster recover" in trouble(machine)
    assert leader(three) is None

    refused = n3.ctl("cluster", "recover", "--force", timeout_s=60)
    assert refused.returncode == 1
    assert f"has the log up to rev {last}" in refused.stderr
    assert leader(three) is None

    said(n1, "cluster", "recover", "--force", timeout_s=160)
    assert leader(three) is n1
    assert asked(n1, "GET", "/settings").json["title"] == "after the backup"
    assert acknowledged(n1, "it goes on") > last
    for machine in (n2, n3):
        until(lambda machine=machine: "cluster leave" in trouble(machine), f"{machine.name} says what to do", 20)
        assert asked(machine, "GET", "/leader/kernel").status == 503
        assert asked(machine, "PUT", "/settings", {"title": "stale"}).status in (503, 409)
    assert sorted(members(n1)) == ["n1"]

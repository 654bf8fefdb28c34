"""The etcd of a cluster, as its administrator reaches it on a member's machine."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace

from piccolod import etcd_conf
from tests.bed.cluster import Cluster
from tests.bed.machine import Machine
from tests.etcd import ETCDCTL
from tests.node import until


def etcdctl(machine: Machine, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """By the certificate of the machine, to its own member."""
    settings = etcd_conf.read(machine.state / "cluster" / "etcd.json")
    assert settings is not None
    tls = [f"--cacert={settings.ca}", f"--cert={settings.cert}", f"--key={settings.key}"]
    return subprocess.run(
        machine.inside(ETCDCTL, f"--endpoints={settings.client_url}", *tls, *words),
        env={"PATH": os.environ["PATH"], "ETCDCTL_API": "3"}, input=stdin, capture_output=True, timeout=20, check=False,
    )  # fmt: skip


def put(machine: Machine, key: str, value: bytes) -> bool:
    """Whether it was acknowledged."""
    return etcdctl(machine, "put", key, stdin=value).returncode == 0


def delete(machine: Machine, key: str) -> None:
    """With what it held before."""
    done = etcdctl(machine, "del", "--prefix", key, "--write-out=json")
    assert done.returncode == 0, done.stderr
    compacted = etcdctl(machine, "compact", str(json.loads(done.stdout)["header"]["revision"]))
    assert compacted.returncode == 0, compacted.stderr


def set_quota(cluster: Cluster, quota_bytes: int) -> None:
    """One member after the other, each serving again before the next."""
    for machine in cluster.machines:
        file = machine.state / "cluster" / "etcd.json"
        settings = etcd_conf.read(file)
        assert settings is not None
        etcd_conf.write(replace(settings, quota_bytes=quota_bytes), file)
        pid = machine.modules()["etcd"]["pid"]
        machine.supervisor("etcd", do="reload")
        machine.supervisor("restart", name="consensus")  # which has read it at its start

        def is_back(machine: Machine = machine, pid: int = pid) -> bool:
            return machine.all_ready() and machine.modules()["etcd"]["pid"] != pid

        until(is_back, f"etcd of {machine.name} with another quota", 30)

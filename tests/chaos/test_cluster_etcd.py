"""etcd takes nothing more, and etcd is what it was yesterday: nobody leads meanwhile, and all goes on once it is well."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time

import pytest

from piccolod import clock
from tests.bed import forming, store
from tests.bed.cluster import Cluster
from tests.bed.machine import Machine
from tests.bed.trial import Trial
from tests.etcd import ETCDCTL
from tests.node import until

pytestmark = pytest.mark.timeout(180)

_QUOTA_BYTES = 24 << 20
_VALUE = b"x" * 1_000_000
_FULL = 507

# Longer than W, and than any try to lead: who would act has acted by then.
_QUIET_S = 4.0


def test_an_etcd_at_its_quota_says_so_by_name_and_goes_on_by_itself_once_its_past_is_dropped(trial: Trial) -> None:
    """What fills it is the past of one key. Heartbeats are refused, too: the term ends if that takes longer than it lasts.

    Once: a member is shrunk by itself every 5 minutes at most.
    """
    store.set_quota(trial.cluster, _QUOTA_BYTES)
    trial.storm.expected.add(_FULL)
    machine = trial.leader()
    trial.storm.wait_acknowledged()
    until(lambda: not store.put(machine, "/foreign", _VALUE), "etcd takes no more", 60, 0)
    until(lambda: any("NOSPACE on n" in alarm for alarm in alarms(trial)), "the alarm is named", 20)
    trial.settled(60)
    until(lambda: not alarms(trial), "no alarm is left", 20)
    store.delete(trial.leader(), "/foreign")


def test_an_old_copy_of_etcd_is_believed_by_nobody_and_the_newest_data_bring_all_back(trial: Trial) -> None:
    """docs/how-to.md, When etcd is not the one that was known."""
    cluster, term = trial.cluster, trial.term()
    copy = save(trial.leader())
    for _ in range(20):
        trial.storm.wait_acknowledged()
    cluster.on_each(stop_etcd)
    for machine in cluster.machines:
        machine.here(machine.state_dir / "etcd").rename(machine.state / "etcd.newest")
        restore(cluster, machine, copy)
    cluster.on_each(start_etcd)
    for machine in cluster.machines:
        until(lambda machine=machine: alarmed(machine), f"{machine.name} raises the alarm", 30, 0.1)
    alarmed_at, end_at = clock.now(), time.monotonic() + _QUIET_S
    while time.monotonic() < end_at:
        assert forming.leader(cluster) is None
        for machine in cluster.machines:
            answer = machine.api("PUT", "/settings", {"title": "on an old etcd"}, timeout_s=15)
            assert answer.status == 503, answer
    trial.oracle.check()
    acts = trial.oracle.stamps("kernel")
    assert [stamp for stamp in acts if stamp.at > alarmed_at or stamp.epoch > term[1]] == [], "somebody acted"

    cluster.on_each(stop_etcd)
    for machine in cluster.machines:
        shutil.rmtree(machine.state / "etcd")
        (machine.state / "etcd.newest").rename(machine.state / "etcd")
        (machine.state / "cluster" / "seen.json").unlink()
        machine.supervisor("restart", name="consensus")
    cluster.on_each(start_etcd)
    trial.settled(60)
    assert trial.term()[1] > term[1]


def alarms(trial: Trial) -> set[str]:
    """Of etcd, as each machine's supervisor shows them."""
    reasons = [str(each.modules()["etcd"]["reason"]) for each in trial.cluster.machines]
    return {alarm.strip() for reason in reasons for alarm in reason.split(";") if alarm.strip().startswith("alarm")}


def save(machine: Machine) -> bytes:
    file = machine.state_dir / "copy"
    saved = store.etcdctl(machine, "snapshot", "save", str(file))
    assert saved.returncode == 0, saved.stderr
    content = machine.here(file).read_bytes()
    machine.here(file).unlink()
    return content


def restore(cluster: Cluster, machine: Machine, copy: bytes) -> None:
    """As etcd's own documentation has it: one copy for every member, and who they all are."""
    file = machine.state_dir / "copy"
    machine.here(file).write_bytes(copy)
    members = {each.name: f"https://{each.address}:2380" for each in cluster.machines}
    done = subprocess.run(
        machine.inside(
            ETCDCTL, "snapshot", "restore", str(file), f"--data-dir={machine.state_dir / 'etcd'}", f"--name={machine.name}",
            f"--initial-cluster={','.join(f'{name}={url}' for name, url in members.items())}",
            f"--initial-advertise-peer-urls={members[machine.name]}",
        ),
        env={"PATH": os.environ["PATH"], "ETCDCTL_API": "3"}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    machine.here(file).unlink()


def stop_etcd(machine: Machine) -> None:
    machine.supervisor("etcd", do="stop")
    until(lambda: not machine.named("etcd"), f"etcd of {machine.name} has ended", 10)


def start_etcd(machine: Machine) -> None:
    machine.supervisor("etcd", do="reload")
    until(lambda: machine.modules()["etcd"]["state"] == "ready", f"etcd of {machine.name} serves", 60)


def alarmed(machine: Machine) -> bool:
    health = machine.api("GET", "/health/detail", timeout_s=5)
    return "nodes remove" in json.dumps(health.json)

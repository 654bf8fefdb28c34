"""Members of etcd, and the disks under them, fail while everybody writes."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest

from services.persistence.disk import PATIENCE_S
from tests.bed import audit, faults, forming
from tests.bed.machine import Machine
from tests.bed.trial import Trial
from tests.chaos.revival import replaced_after, rested, rested_leader
from tests.chaos.rounds import ROUNDS, at_length
from tests.node import until

pytestmark = pytest.mark.timeout(180)

PEER_PORTS = (2380,)
# Longer than a leader bears a disk that takes nothing.
_FULL_S = PATIENCE_S + 1


def test_a_follower_of_etcd_that_is_killed_changes_nothing(trial: Trial, chance: random.Random) -> None:
    term, leading = trial.term(), forming.wait_etcd_leader(trial.cluster)
    lost = rested(trial, [machine for machine in trial.cluster.machines if machine is not leading], "etcd")
    trial.moment(chance)
    replaced_after(faults.kill, trial, lost, "etcd")
    trial.settled()
    assert trial.term() == term


def test_the_leader_of_etcd_is_killed(trial: Trial, chance: random.Random) -> None:
    leading = rested(trial, [forming.wait_etcd_leader(trial.cluster)], "etcd")
    trial.moment(chance)
    replaced_after(faults.kill, trial, leading, "etcd")
    trial.settled()


def test_etcd_on_the_leader_accepts_and_never_answers(trial: Trial, chance: random.Random) -> None:
    """It is killed as one that makes no progress, and meanwhile the others serve its consensus."""
    machine = rested_leader(trial, "etcd")
    trial.moment(chance)
    replaced_after(faults.freeze, trial, machine, "etcd")
    trial.settled()


def test_a_leader_that_is_cut_off_from_the_store_alone_is_served_by_no_member_and_followed(
    trial: Trial, chance: random.Random
) -> None:
    """Its own member of etcd has no quorum, and the others do not hear it; clients and peers still reach it."""
    term, machine = trial.term(), trial.leader()
    others = [follower.name for follower in trial.followers()]
    trial.moment(chance)
    faults.partition(trial.cluster, [machine.name], others, ports=faults.ETCD_PORTS)
    until(lambda: forming.leader(trial.cluster, machine), "another node leads", 30)
    trial.storm.wait_acknowledged()
    answer = machine.api("PUT", "/settings", {"title": "without a store"}, timeout_s=15)
    assert answer.status in (307, 409, 503), answer
    faults.heal(trial.cluster)
    trial.settled()
    assert trial.term()[1] > term[1]


def test_a_leader_whose_member_of_etcd_is_cut_off_from_the_others_is_served_by_them(
    trial: Trial, chance: random.Random
) -> None:  # fmt: skip
    """Members do not hear one another, and consensus turns to one that has a quorum: no change for a fault of one member."""
    follower_of_etcd = next(each for each in trial.cluster.machines if each is not forming.wait_etcd_leader(trial.cluster))
    forming.switch_over(trial.cluster, follower_of_etcd)
    term, machine = trial.term(), trial.leader()
    trial.moment(chance)
    faults.partition(trial.cluster, [machine.name], [each.name for each in trial.followers()], ports=PEER_PORTS)
    rest(3.0)
    assert trial.term() == term
    faults.heal(trial.cluster)
    trial.settled()
    assert trial.term() == term


def test_quorum_is_lost_for_three_seconds_and_comes_back(trial: Trial, chance: random.Random) -> None:
    """The store alone: the machines still reach each other."""
    trial.moment(chance)
    began = time.monotonic()
    part_members(trial)
    rest(3.0)
    assert trial.storm.longest_gap_s(began) > 2.0, "nobody can commit without a quorum"
    faults.heal(trial.cluster)
    trial.settled()


@pytest.mark.skipif(ROUNDS == 1, reason="a minute: make chaos")
def test_quorum_is_lost_for_a_minute_and_nobody_leads_meanwhile(trial: Trial) -> None:
    part_members(trial)
    until(lambda: forming.leader(trial.cluster) is None, "nobody leads", 10)
    end_at = time.monotonic() + 60
    while time.monotonic() < end_at:
        assert forming.leader(trial.cluster) is None
        for machine in trial.cluster.machines:
            answer = machine.api("PUT", "/settings", {"title": "without a quorum"}, timeout_s=15)
            assert answer.status == 503, answer
        rest(2.0)
    faults.heal(trial.cluster)
    trial.settled()


def test_a_frozen_disk_under_the_leaders_etcd(trial: Trial, chance: random.Random) -> None:
    machine = trial.leader()
    trial.moment(chance)
    faults.freeze_disk(machine)
    try:
        rest(4.0)
    finally:
        faults.thaw_disk(machine)
    trial.settled()


@pytest.mark.parametrize("role", ["leader", *at_length("follower")])
def test_a_full_disk_under_one_member_stops_nobody_else(trial: Trial, chance: random.Random, role: str) -> None:
    machine = trial.leader() if role == "leader" else chance.choice(trial.followers())
    trial.moment(chance)
    faults.fill_disk(machine)
    try:
        end_at = time.monotonic() + _FULL_S
        while time.monotonic() < end_at:
            trial.storm.wait_acknowledged()
    finally:
        faults.empty_disk(machine)
    trial.settled()


def test_a_flipped_byte_in_a_followers_file_is_healed_from_the_others(trial: Trial, chance: random.Random) -> None:
    follower = chance.choice(trial.followers())
    with trial.storm.calm():
        flip(follower, chance)
        instance = follower.instance("persistence")
        faults.kill(follower, "persistence")  # its next life reads the whole file; this one would within 5 minutes
        until(lambda: follower.is_replaced("persistence", instance), "persistence is replaced", 30)
        forming.unlock(follower)
        until(lambda: list((follower.state / "store").glob("control.db.corrupt-*")), "the damaged file is set aside", 20)
    trial.settled()
    report = follower.api("POST", "/store/check", timeout_s=60)
    assert report.status == 200 and report.json["ok"], report


def part_members(trial: Trial) -> None:
    names = [machine.name for machine in trial.cluster.machines]
    for name in names:
        faults.partition(trial.cluster, [name], [other for other in names if other > name], ports=faults.ETCD_PORTS)


def rest(seconds: float) -> None:
    """How long a fault lasts is the fault itself."""
    time.sleep(seconds)


def flip(machine: Machine, chance: random.Random) -> None:
    """One byte inside of a sealed entry, in the file itself and not in its write-ahead log."""
    checkpoint = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA wal_checkpoint(TRUNCATE)')"
    path = str(machine.state_dir / "store" / "control.db")
    subprocess.run(machine.inside(sys.executable, "-c", checkpoint, path), check=True, timeout=20)
    entries = [entry.sealed for entry in audit.entries(machine.state)]
    file = machine.state / "store" / "control.db"
    content = file.read_bytes()
    at = content.index(chance.choice(entries[: len(entries) // 2])[:40]) + 20
    with file.open("r+b") as raw:
        raw.seek(at)
        raw.write(bytes([content[at] ^ 1 << chance.randrange(8)]))

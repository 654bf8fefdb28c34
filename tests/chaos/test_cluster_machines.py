"""Whole machines of a cluster freeze, are cut off and lose power while everybody writes."""

from __future__ import annotations

import random
import time

import pytest

from tests.bed import faults
from tests.bed.trial import Trial
from tests.node import until

pytestmark = pytest.mark.timeout(240)

# leadership.md, Time: what profile `fast` surely survives is 1.3 s.
_SHORT_S = 0.6


def test_a_leader_that_stands_still_for_a_moment_keeps_its_term(trial: Trial, chance: random.Random) -> None:
    term, machine = trial.term(), trial.leader()
    trial.moment(chance)
    freeze_for(trial, machine.name, _SHORT_S)
    trial.settled()
    assert trial.term() == term


def test_a_leader_that_stands_still_for_three_seconds(trial: Trial, chance: random.Random) -> None:
    """Its term has run out when it wakes, and whether anybody has taken it or not, it alone or the other acts."""
    trial.moment(chance)
    freeze_for(trial, trial.leader().name, 3.0)
    trial.settled()


def test_a_leader_that_is_cut_off_is_followed_by_another_and_takes_nothing_more(trial: Trial, chance: random.Random) -> None:
    term, machine = trial.term(), trial.leader()
    others = [each.name for each in trial.cluster.machines if each is not machine]
    trial.moment(chance)
    faults.partition(trial.cluster, [machine.name], others)
    until(lambda: trial.leader() is not machine, "one of the others leads", 30)
    trial.storm.wait_acknowledged()
    refused = machine.api("PUT", "/settings", {"title": "by a stale leader"}, timeout_s=15)
    assert refused.status != 200, refused
    faults.heal(trial.cluster)
    trial.settled()
    assert trial.term()[1] > term[1]


def test_a_link_that_flaps_faster_than_the_budget_changes_nothing(trial: Trial, chance: random.Random) -> None:
    term, machine = trial.term(), trial.leader()
    trial.moment(chance)
    flap(trial, machine.name, [(0.3, 1.0)] * 4)
    trial.settled()
    assert trial.term() == term


def test_a_link_that_flaps_at_random(trial: Trial, chance: random.Random) -> None:
    flap(trial, trial.leader().name, [(chance.uniform(0.2, 3.0), chance.uniform(0.1, 1.5)) for _ in range(4)])
    trial.settled()


def test_the_leaders_machine_loses_power(trial: Trial, chance: random.Random) -> None:
    lost = trial.leader()
    trial.moment(chance)
    faults.power_off(lost)
    until(lambda: trial.leader() is not lost, "another node leads", 30)
    trial.storm.wait_acknowledged()
    trial.power_on(lost)
    trial.settled()


def test_all_machines_lose_power_and_nothing_acknowledged_is_lost(trial: Trial, chance: random.Random) -> None:
    trial.moment(chance)
    trial.cluster.on_each(faults.power_off)
    trial.power_on(*trial.cluster.machines)
    trial.settled(60)


def freeze_for(trial: Trial, name: str, seconds: float) -> None:
    machine = trial.cluster[name]
    faults.freeze(machine)
    try:
        time.sleep(seconds)  # how long a fault lasts is the fault itself
    finally:
        faults.thaw(machine)


def flap(trial: Trial, name: str, times: list[tuple[float, float]]) -> None:
    """Cut off and not, for so many seconds each."""
    others = [machine.name for machine in trial.cluster.machines if machine.name != name]
    for away_s, back_s in times:
        faults.partition(trial.cluster, [name], others)
        time.sleep(away_s)
        faults.heal(trial.cluster)
        time.sleep(back_s)

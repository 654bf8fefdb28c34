"""Whole machines of a cluster freeze, are cut off and lose power while everybody writes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from piccolod.leadership.timing import FAST
from tests.bed import faults, forming, wallclock
from tests.bed.machine import API_PORT, Machine
from tests.bed.network import CLIENT
from tests.bed.trial import Trial
from tests.chaos.rounds import ROUNDS, at_length
from tests.node import until

pytestmark = pytest.mark.timeout(240)

# leadership.md, Time: what profile `fast` surely survives is 1.3 s.
_SHORT_S = 0.6
_TERM_S = FAST.span_s - FAST.margin_s + 0.2  # without a heartbeat it has ended by then


def test_a_leader_that_stands_still_for_a_moment_keeps_its_term(trial: Trial, chance: random.Random) -> None:
    term, machine = trial.term(), trial.leader()
    trial.moment(chance)
    with standing_still(machine):
        rest(_SHORT_S)
    trial.settled()
    assert trial.term() == term


def test_a_leader_that_stands_still_for_three_seconds(trial: Trial, chance: random.Random) -> None:
    """Its term has run out when it wakes, and whether anybody has taken it or not, it alone or the other acts."""
    trial.moment(chance)
    with standing_still(trial.leader()):
        rest(3.0)
    trial.settled()


@pytest.mark.skipif(ROUNDS == 1, reason="a minute: make chaos")
def test_a_leader_that_stands_still_for_a_minute_is_followed_and_comes_back(trial: Trial) -> None:
    """The others have long gone on; what it still holds in memory is of no use to it."""
    term, machine = trial.term(), trial.leader()
    trial.storm.wait_acknowledged()
    with standing_still(machine):
        until(lambda: forming.leader(trial.cluster, machine), "another node leads", 30)
        end_at = time.monotonic() + 60
        while time.monotonic() < end_at:
            trial.storm.wait_acknowledged()
    trial.settled()
    assert trial.term()[1] > term[1]


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


def test_a_client_that_does_not_reach_the_leader_changes_nothing_and_is_answered_by_the_others(
    trial: Trial, chance: random.Random
) -> None:  # fmt: skip
    """Its trouble is no fault of the cluster; that it is alone with it, nobody but itself can see."""
    term, machine, other = trial.term(), trial.leader(), chance.choice(trial.followers())
    assert says_who_leads(trial, machine) == machine.name
    faults.partition(trial.cluster, [CLIENT], [machine.name])
    began = time.monotonic()
    assert says_who_leads(trial, machine) == "", "it is cut off"
    assert says_who_leads(trial, other) == machine.name
    faults.partition(trial.cluster, [CLIENT], [each.name for each in trial.followers()])
    trial.storm.wait_acknowledged()
    assert trial.storm.longest_gap_s(began) < 2.0, "the others were not served"
    faults.heal(trial.cluster)
    trial.settled()
    assert trial.term() == term
    assert says_who_leads(trial, machine) == machine.name


def test_a_link_that_flaps_faster_than_the_budget_changes_nothing(trial: Trial, chance: random.Random) -> None:
    term, machine = trial.term(), trial.leader()
    trial.moment(chance)
    flap(trial, machine.name, [(0.3, 1.0)] * 4)
    trial.settled()
    assert trial.term() == term


def test_a_link_that_flaps_at_random(trial: Trial, chance: random.Random) -> None:
    flap(trial, trial.leader().name, [(chance.uniform(0.2, 3.0), chance.uniform(0.1, 1.5)) for _ in range(4)])
    trial.settled()


def test_steps_of_the_wall_clock_change_nothing_for_who_leads_nor_for_who_follows(trial: Trial, chance: random.Random) -> None:
    machine = trial.leader()
    faults.power_off(machine)
    machine.boot()
    wallclock.lay(machine)
    machine.start(wait=False)
    trial.welcome(machine)
    trial.settled()
    for role in ("follower", "leader"):
        if role == "leader":
            forming.switch_over(trial.cluster, machine)
        term = trial.term()
        instances = {name: machine.instance(name) for name in ("broker", "consensus", "persistence", "volumes", "apps")}
        assert all(wallclock.reads(machine.pid(name)) for name in instances)
        for ahead_s in (3600.0, -3600.0):
            trial.moment(chance)
            began = time.monotonic()
            wallclock.step(machine, ahead_s)
            rest(_TERM_S)
            assert abs(told_time(machine) - time.time() - ahead_s) < 60, "it was not stepped"
            assert trial.storm.longest_gap_s(began) < 2.0
        trial.settled()
        assert trial.term() == term
        assert {name: machine.instance(name) for name in instances} == instances, "somebody was replaced"
    wallclock.step(machine, 0.0)


@pytest.mark.parametrize("leads_etcd", [True, *at_length(False)])
def test_the_leaders_machine_loses_power(trial: Trial, chance: random.Random, leads_etcd: bool) -> None:
    """Most in one when it leads etcd, too: what was leased there lives longer for the election; the term does not."""
    first = forming.wait_etcd_leader(trial.cluster)
    others = [machine for machine in trial.cluster.machines if machine is not first]
    lost = first if leads_etcd else chance.choice(others)
    forming.switch_over(trial.cluster, lost)
    trial.moment(chance)
    faults.power_off(lost)
    until(lambda: forming.leader(trial.cluster, lost), "another node leads", 30)
    trial.storm.wait_acknowledged()
    trial.power_on(lost)
    trial.settled()


def test_all_machines_lose_power_and_nothing_acknowledged_is_lost(trial: Trial, chance: random.Random) -> None:
    trial.moment(chance)
    trial.cluster.on_each(faults.power_off)
    trial.power_on(*trial.cluster.machines)
    trial.settled(60)


@contextmanager
def standing_still(machine: Machine) -> Iterator[None]:
    faults.freeze(machine)
    try:
        yield
    finally:
        faults.thaw(machine)


def told_time(machine: Machine) -> float:
    """What its supervisor takes for the time of day, as the death that it writes down now tells."""
    instance = machine.instance("telemetry")
    machine.supervisor("restart", name="telemetry")
    until(lambda: machine.is_replaced("telemetry", instance), "telemetry is replaced", 20)
    deaths = {death["instance"]: death["at_ms"] for death in machine.get("/modules/telemetry/deaths")}
    return float(deaths[instance]) / 1000


def rest(seconds: float) -> None:
    """How long a fault lasts is the fault itself."""
    time.sleep(seconds)


def says_who_leads(trial: Trial, machine: Machine) -> str:
    """What the client hears from it; empty when that is nothing."""
    done = trial.cluster.client("curl", "-s", "-m", "2", f"http://{machine.address}:{API_PORT}/api/v1/leadership/kernel",
                                "-H", f"Authorization: {trial.storm.bearer}")  # fmt: skip
    return str(json.loads(done.stdout)["node"]) if done.returncode == 0 else ""


def flap(trial: Trial, name: str, times: list[tuple[float, float]]) -> None:
    """Cut off and not, for so many seconds each."""
    others = [machine.name for machine in trial.cluster.machines if machine.name != name]
    for away_s, back_s in times:
        faults.partition(trial.cluster, [name], others)
        rest(away_s)
        faults.heal(trial.cluster)
        rest(back_s)

"""The guards of a cluster's leader, supervisor and leashes, are killed and frozen, alone and with others, over an app that runs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from tests.bed import faults, forming
from tests.bed.machine import Machine
from tests.bed.oracle import Interval, intervals
from tests.bed.trial import Trial
from tests.chaos.revival import by_service_manager, replaced_after
from tests.chaos.rounds import at_length
from tests.node import until

pytestmark = pytest.mark.timeout(180)

APP, RESOURCE = "hello", "app:hello"
# leadership.md, Time: what profile `fast` surely survives is 1.3 s. A supervisor that stands still is noticed after 0.4 s.
_SHORT_S = 0.6


@pytest.fixture(scope="module")
def home(trial: Trial) -> Machine:
    """The machine that an app runs on, which says every 10 ms that it acts. No other may run it."""
    machine = trial.leader()
    trial.cluster.load_demo_image(machine)
    others = ", ".join(each.name for each in trial.followers())
    stays = f"cluster: {{never: [{others}]}}\n"
    machine.install(machine.demo_manifest(APP, trial.oracle.app_command(RESOURCE) + stays))
    return machine


@pytest.fixture(autouse=True)
def _leading(trial: Trial, home: Machine) -> None:
    """It leads the kernel, too, and the app acts."""
    forming.switch_over(trial.cluster, home)
    acting(trial)


def acting(trial: Trial) -> Interval:
    """The run of the app that acts now."""

    def now() -> Interval | None:
        runs = intervals(trial.oracle.stamps(RESOURCE))
        return runs[-1] if runs and time.clock_gettime(time.CLOCK_BOOTTIME) - runs[-1].last_at < 0.5 else None

    found: Interval = until(now, "the app acts", 60)
    return found


def unchanged(trial: Trial, fault: Callable[[], None]) -> None:
    """The term and the container are the same after it, and nobody was refused for long."""
    term, run = trial.term(), acting(trial).run
    fault()
    trial.settled()
    assert trial.term() == term
    assert acting(trial).run == run, "the app was stopped"


@pytest.mark.parametrize("fault", [faults.kill, faults.freeze])
@pytest.mark.parametrize("leash", ["leash.0", "leash.1"])
def test_a_leash_that_is_killed_or_frozen_is_replaced_and_nothing_changes(
    trial: Trial, home: Machine, chance: random.Random, leash: str, fault: Callable[..., None]
) -> None:
    trial.moment(chance)
    unchanged(trial, lambda: replaced_after(fault, trial, home, leash))


@pytest.mark.parametrize("fault", [faults.freeze, *at_length(faults.kill)])
def test_both_leashes_at_once_are_replaced_and_nothing_changes(
    trial: Trial, home: Machine, chance: random.Random, fault: Callable[..., None]
) -> None:
    trial.moment(chance)
    unchanged(trial, lambda: replaced_after(fault, trial, home, "leash.0", "leash.1"))


def test_a_supervisor_that_stands_still_for_a_moment_changes_nothing(
    trial: Trial, home: Machine, chance: random.Random
) -> None:  # fmt: skip
    def hit() -> None:
        with faults.frozen(home, "supervisor"):
            time.sleep(_SHORT_S)  # how long a fault lasts is the fault itself

    trial.moment(chance)
    unchanged(trial, hit)


@pytest.mark.parametrize("also", ["", "leash.0", "apps", "consensus", *at_length("leash.1", "persistence")])
def test_who_leads_with_a_frozen_supervisor_is_followed_and_its_app_is_dead_before(
    trial: Trial, home: Machine, chance: random.Random, also: str
) -> None:
    """A node that cannot act must not lead; the guards that are left kill what it led."""
    term, run = trial.term(), acting(trial).run
    trial.moment(chance)
    with faults.frozen(home, "supervisor", *filter(None, [also])):
        until(lambda: forming.leader(trial.cluster, home), "another node leads", 30)
        trial.storm.wait_acknowledged()
    dead_at = next(each.last_at for each in intervals(trial.oracle.stamps(RESOURCE)) if each.run == run)
    acts = until(lambda: [one.at for one in trial.oracle.stamps("kernel") if one.epoch > term[1]], "its gate is open")
    taken_at = min(acts)
    assert dead_at < taken_at
    trial.settled()
    until(lambda: acting(trial).run != run, "it acts anew", 60)
    trial.oracle.check()


@pytest.mark.parametrize("also", ["leash.0", *at_length("persistence", "consensus")])
def test_a_supervisor_that_is_killed_with_another_guard_or_module(
    trial: Trial, home: Machine, chance: random.Random, also: str
) -> None:
    term = trial.term()
    trial.moment(chance)
    faults.kill(home, "supervisor", also)
    by_service_manager(home)
    until(lambda: forming.leader(trial.cluster, home), "another node leads", 20)
    trial.settled()
    assert trial.term()[1] > term[1]
    acting(trial)
    trial.oracle.check()

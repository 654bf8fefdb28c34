"""Processes of a cluster's leader are killed and frozen while everybody writes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.bed import faults
from tests.bed.trial import Trial
from tests.chaos.revival import by_service_manager, replaced_after, rested_leader
from tests.chaos.rounds import at_length
from tests.node import until

pytestmark = pytest.mark.timeout(180)

BOTH = ("consensus", "persistence")


@pytest.mark.parametrize("module", ["consensus", "persistence"])
def test_a_module_killed_on_the_leader_changes_no_leadership(trial: Trial, chance: random.Random, module: str) -> None:
    machine = rested_leader(trial, module)
    term = trial.term()
    trial.moment(chance)
    replaced_after(faults.kill, trial, machine, module)
    trial.settled()
    assert trial.term() == term


@pytest.mark.parametrize("module", ["consensus", "persistence"])
def test_a_module_frozen_on_the_leader_is_replaced_and_changes_no_leadership(
    trial: Trial, chance: random.Random, module: str
) -> None:
    machine = rested_leader(trial, module)
    term = trial.term()
    trial.moment(chance)
    replaced_after(faults.freeze, trial, machine, module)
    trial.settled()
    assert trial.term() == term


def test_both_killed_at_once_change_no_leadership(trial: Trial, chance: random.Random) -> None:
    machine = rested_leader(trial, *BOTH)
    term = trial.term()
    trial.moment(chance)
    replaced_after(faults.kill, trial, machine, *BOTH)
    trial.settled()
    assert trial.term() == term


@pytest.mark.parametrize(
    ("fault", "pair"),
    [
        (faults.freeze, BOTH),
        (faults.kill, ("persistence", "etcd")),
        (faults.freeze, ("persistence", "etcd")),
        *at_length(*((fault, (one, "etcd")) for fault in (faults.kill, faults.freeze) for one in ("consensus", "leash.0"))),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value.__name__,
)
def test_two_at_once_on_the_leader(
    trial: Trial, chance: random.Random, fault: Callable[..., None], pair: tuple[str, str]
) -> None:  # fmt: skip
    """Each is replaced on its own. Whether the term lasts depends on which member leads etcd, and on how soon others elect."""
    machine = rested_leader(trial, *pair)
    trial.moment(chance)
    replaced_after(fault, trial, machine, *pair)
    trial.settled()


def test_a_supervisor_that_is_killed_gives_the_kernel_to_another_node(trial: Trial, chance: random.Random) -> None:
    term, machine = trial.term(), trial.leader()
    trial.moment(chance)
    faults.kill(machine, "supervisor")
    by_service_manager(machine)
    until(lambda: trial.leader() is not machine, "another node leads", 20)
    trial.settled()
    assert trial.term()[1] > term[1]

"""Processes of a cluster's leader are killed and frozen while everybody writes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.bed import faults, forming
from tests.bed.machine import Machine
from tests.bed.trial import Trial
from tests.node import PICCOLOD, until

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("module", ["consensus", "persistence"])
def test_a_module_killed_on_the_leader_changes_no_leadership(trial: Trial, chance: random.Random, module: str) -> None:
    term, machine = trial.term(), trial.leader()
    hit(trial, machine, module, faults.kill, chance)
    trial.settled()
    assert trial.term() == term


@pytest.mark.parametrize("module", ["consensus", "persistence"])
def test_a_module_frozen_on_the_leader_is_replaced_and_changes_no_leadership(
    trial: Trial, chance: random.Random, module: str
) -> None:
    term, machine = trial.term(), trial.leader()
    hit(trial, machine, module, faults.freeze, chance)
    trial.settled()
    assert trial.term() == term


def test_consensus_and_persistence_killed_together_on_the_leader(trial: Trial, chance: random.Random) -> None:
    machine = trial.leader()
    hit(trial, machine, "consensus", lambda where, module: faults.kill(where, module, "persistence"), chance)
    trial.settled()


def test_a_supervisor_that_is_killed_gives_the_kernel_to_another_node(trial: Trial, chance: random.Random) -> None:
    term, machine = trial.term(), trial.leader()
    trial.moment(chance)
    faults.kill(machine, "supervisor")
    service_manager(machine)
    until(lambda: trial.leader() is not machine, "another node leads", 20)
    trial.settled()
    assert trial.term()[1] > term[1]


def hit(trial: Trial, machine: Machine, module: str, fault: Callable[..., None], chance: random.Random) -> None:
    """Once the module has lived long enough that its death is no crash loop; it is another process afterwards."""
    instance = machine.instance(module)
    trial.moment(chance)
    fault(machine, module)
    until(lambda: machine.is_replaced(module, instance), f"{module} is replaced", 30)


def service_manager(machine: Machine) -> None:
    """What deploy/systemd does when piccolod has ended by itself: the hook, then a new start."""
    assert machine.process is not None
    machine.process.wait(10)
    machine.process = None
    hook = machine.spawn(str(PICCOLOD), "--config", str(machine.config_file), "--after-crash")
    hook.wait(20)
    machine.start(wait=False)
    machine.wait_up(60)
    forming.unlock(machine)

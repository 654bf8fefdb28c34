"""How a program that was hit comes back, as tests wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from piccolod.supervisor.restart import Policy
from tests.bed import forming
from tests.bed.machine import Machine
from tests.bed.trial import Trial
from tests.node import PICCOLOD, Failed, until

# What died twice within a minute is started again a tenth of a second later, and later each time: another fault than one death.
_FORGOTTEN_S: Final = Policy().healthy_s + 5
_OFTEN: Final = 2


def rested(trial: Trial, among: Sequence[Machine], *programs: str) -> Machine:
    """The first of those where these programs have been hit least of late, once that was not too often."""

    def hits(machine: Machine) -> int:
        since = time.monotonic() - _FORGOTTEN_S
        return max(sum(at > since for at in trial.hits[machine.name, program]) for program in programs)

    found = min(among, key=hits)
    until(lambda: hits(found) < _OFTEN, f"{', '.join(programs)} of {found.name} have rested", _FORGOTTEN_S, 0.5)
    return found


def rested_leader(trial: Trial, *programs: str) -> Machine:
    """The leader, or a machine that the kernel is handed to because these programs have rested there."""
    machine = rested(trial, [trial.leader(), *trial.followers()], *programs)
    forming.switch_over(trial.cluster, machine)
    return machine


def replaced_after(fault: Callable[..., None], trial: Trial, machine: Machine, *programs: str) -> None:
    """Hits modules or programs beside them, all at once; others are there afterwards in their place, and ready."""
    pids = {program: machine.modules()[program]["pid"] for program in programs}
    assert all(pids.values()), f"{machine.name} does not run all of {programs}"
    for program in programs:
        trial.hits[machine.name, program].append(time.monotonic())
    fault(machine, *programs)

    def missing() -> list[dict[str, Any]]:
        rows = machine.modules()
        found = [rows.get(program, {"name": program, "state": "unknown", "pid": 0}) for program in programs]
        return [row for row in found if row["state"] != "ready" or row["pid"] in (0, pids[row["name"]])]

    try:
        until(lambda: not missing(), f"{', '.join(programs)} of {machine.name} replaced", 30)
    except Failed as error:
        raise Failed(f"{error}; {missing()}; output: {machine.tail()}") from None


def by_service_manager(machine: Machine) -> None:
    """What deploy/systemd does when piccolod has ended by itself: the hook, then a new start."""
    assert machine.process is not None
    machine.process.wait(10)
    machine.process = None
    hook = machine.spawn(str(PICCOLOD), "--config", str(machine.config_file), "--after-crash")
    hook.wait(20)
    machine.start(wait=False)
    machine.wait_up(60)
    forming.unlock(machine)

"""The machines of a bench's cluster: lost, killed, back again, and all well."""

from __future__ import annotations

import sys

from tests.bed import faults, forming
from tests.bed.cluster import Cluster
from tests.bed.machine import Machine
from tests.node import PICCOLOD, until


class Members:
    def __init__(self, cluster: Cluster, machines: list[Machine]) -> None:
        self.cluster, self.machines = cluster, machines

    def others(self, but: Machine) -> list[Machine]:
        return [machine for machine in self.machines if machine is not but]

    def back(self, machine: Machine) -> None:
        """On, started, and unlocked, whatever of that it was not."""
        if not machine.is_on:
            machine.boot()
        if machine.process is None:
            machine.start(wait=False)
        machine.wait_up(60)
        forming.unlock(machine)

    def wait_alive(self) -> Machine:
        """The kernel's leader, once every member is alive and a voter."""
        leading = forming.wait_leader(self.cluster, within_s=40)
        until(lambda: self._all_alive(leading), "every member alive and a voter", 60, 0.2)
        return leading

    def _all_alive(self, by: Machine) -> bool:
        found = forming.members(by)
        return len(found) == len(self.machines) and all(each["voter"] and each["state"] == "alive" for each in found.values())


def kill_tree(machine: Machine) -> None:
    """SIGKILL of the supervisor, with which every module ends; then the hook, as the service manager runs it at once."""
    faults.kill(machine, "supervisor")
    assert machine.process is not None
    machine.process.wait(10)
    machine.process = None
    machine.spawn(str(PICCOLOD), "--config", str(machine.config_file), "--after-crash")


def in_order(seconds: list[float]) -> list[float]:
    return sorted(round(each, 3) for each in seconds)


def say(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)

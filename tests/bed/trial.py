"""A cluster on trial: written to without end, its gates watched, and after each fault everything that must hold.

with Trial(cluster) as trial:
    faults.kill(trial.leader(), "consensus")
    trial.settled()

The promises are those of testing.md: I1 by the oracle, I2 and I4 by the members' files, I3 by what the writers were told,
I10 by what the members say once it is over.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from contextlib import ExitStack, suppress

from tests.bed import audit, faults, forming
from tests.bed.cluster import Cluster
from tests.bed.machine import Machine
from tests.bed.oracle import Oracle
from tests.bed.storm import Storm
from tests.node import Failed, until

Term = tuple[str, int]  # node, epoch


class Trial:
    """Every machine of `cluster` is on, unlocked and a member."""

    def __init__(self, cluster: Cluster, storm_pause_s: float = 0.02) -> None:
        self.cluster = cluster
        self.oracle = Oracle(cluster)
        self.storm = Storm(cluster.machines, pause_s=storm_pause_s)
        self.hits: defaultdict[tuple[str, str], list[float]] = defaultdict(list)  # (machine, program) -> when (time.monotonic)
        self._stack = ExitStack()

    def __enter__(self) -> Trial:
        self._stack.enter_context(self.oracle)
        for machine in self.cluster.machines:
            self.watch(machine)
        self._stack.enter_context(self.storm)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def watch(self, machine: Machine) -> None:
        """Puts somebody at a machine's gate who acts whenever it is open; again after each loss of power."""
        host, port = self.oracle.address
        page = str(machine.run_dir / "page")
        machine.spawn(sys.executable, "-m", "tests.bed.gate_holder", page, "kernel", host, str(port))

    def leader(self) -> Machine:
        return forming.wait_leader(self.cluster, within_s=40)

    def followers(self) -> list[Machine]:
        leading = self.leader()
        return [machine for machine in self.cluster.machines if machine is not leading]

    def term(self) -> Term:
        """Who leads, in which epoch, as the leader itself says."""
        return _term(self.leader())

    def moment(self, chance: random.Random) -> None:
        """Lets some writes pass, so that a fault comes between any two or in one."""
        for _ in range(chance.randrange(1, 6)):
            self.storm.wait_acknowledged()

    def power_on(self, *machines: Machine) -> None:
        """Boots them, unlocks them as a person does, and watches their gates."""
        for machine in machines:
            faults.power_on(machine, within_s=0)
        for machine in machines:
            self.welcome(machine)

    def welcome(self, machine: Machine) -> None:
        """Of a machine whose piccolod was started: unlocked as a person does, and its gate watched."""
        machine.wait_up(60)
        forming.unlock(machine)
        self.watch(machine)

    def settled(self, within_s: float = 40.0) -> None:
        """All is well again: writes are acknowledged, one node leads, every member has the same, and nothing was lost."""
        self.storm.wait_acknowledged(within_s)
        with self.storm.calm():
            until(lambda: len(self._ends()) == 1, "the same rev and digest everywhere", within_s, 0.1)
            until(lambda: len(self._terms()) == 1, "every member names the same leader", within_s, 0.1)
            until(lambda: all(machine.all_ready() for machine in self.cluster.machines), "every module ready", within_s, 0.1)
            until(lambda: self._whole() == set(), "every member of etcd serves", within_s, 0.2)
            self.check()

    def check(self) -> None:
        """What holds at any time while nobody writes."""
        self.oracle.check()
        found = audit.problems(self.cluster, self.storm)
        assert not found, "\n".join(found[:20])
        assert not self.storm.unexpected(), self.storm.told

    def _ends(self) -> set[tuple[int, str, bool]]:
        """(rev, digest, locked) of each; one that is locked never equals one that is not."""
        found = set()
        for machine in self.cluster.machines:
            try:
                end = machine.api("GET", "/store/revision", timeout_s=5).json
                found.add((end["rev"], end["digest"], end["locked"]))
            except (OSError, KeyError, ValueError):
                found.add((0, machine.name, True))
        return found

    def _terms(self) -> set[Term]:
        found = set()
        for machine in self.cluster.machines:
            with suppress(Failed, AssertionError, OSError):
                found.add(_term(machine))
                continue
            found.add((f"unknown to {machine.name}", 0))
        return found

    def _whole(self) -> set[str]:
        """Members that somebody misses."""
        missed = set()
        for machine in self.cluster.machines:
            with suppress(OSError):
                if found := forming.members(machine):
                    missed |= {name for name, each in found.items() if each["state"] != "alive"}
                    continue
            missed.add(machine.name)
        return missed


def _term(machine: Machine) -> Term:
    found = machine.get("/leadership/kernel")
    return str(found["node"]), int(found["epoch"])

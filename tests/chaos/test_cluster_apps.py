"""Faults at random while apps run: at no time do two of one act, and in the end each runs on one node and all answer for it.

`make chaos ROUNDS=100 T=...` are 300 faults.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from piccolod import clock
from tests.bed import faults
from tests.bed.apps import answers, home, installed, runs
from tests.bed.cluster import Cluster
from tests.bed.forming import asking, form, said, unlock
from tests.bed.machine import Machine
from tests.bed.trial import Trial
from tests.chaos.revival import by_service_manager
from tests.node import until

pytestmark = pytest.mark.timeout(400)

APPS = ("act0", "act1", "act2")
FAULTS_A_ROUND = 3
_MODULES = ("apps", "router.0", "router.1", "volumes", "consensus", "persistence", "broker", "api", "telemetry")
_BESIDE = ("leash.0", "leash.1", "podman", "etcd", "zygote")
_STALE_S = 0.5  # actors say it every 10 ms


class Apps:
    """The ports of the apps, on a cluster on trial."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.machines = trial, trial.cluster.machines
        self.ports = {name: installed(trial.cluster, name, trial.oracle.app_command(f"app:{name}")) for name in APPS}

    def on(self, chance: random.Random) -> Machine:
        """One that has power and whose piccolod runs."""
        return chance.choice([machine for machine in self.machines if machine.is_on and machine.process is not None])

    def restored(self) -> None:
        """What people do after such a day: everything has power and is unlocked, every cable is in, nobody is drained."""
        trial = self.trial
        faults.heal(trial.cluster)
        trial.power_on(*(machine for machine in self.machines if not machine.is_on))
        for machine in self.machines:
            if machine.process is None:  # its start was hit by another fault
                machine.start(wait=False)
                machine.wait_up(60)
                unlock(machine)
        leading = trial.leader()
        for machine in self.machines:
            said(leading, "nodes", "undrain", machine.name)

    def acts(self, name: str) -> bool:
        stamps = self.trial.oracle.stamps(f"app:{name}")
        return bool(stamps) and clock.now() - stamps[-1].at < _STALE_S

    def whole(self, name: str) -> bool:
        """It runs where it is led and nowhere else, and every machine leads clients to it."""
        leading = home(self.trial.cluster, name)
        if leading is None or not self.acts(name):
            return False
        at = [machine for machine in self.machines if runs(machine, name)]
        return at == [leading] and all(answers(machine, self.ports[name]) for machine in self.machines)


@pytest.fixture(scope="module")
def apps() -> Iterator[Apps]:
    with Cluster(3) as cluster:
        cluster.start()
        form(cluster)
        cluster.load_demo_image()
        with Trial(cluster, storm_pause_s=0.3) as trial:
            trial.settled()
            yield Apps(trial)


def hit_process(apps: Apps, chance: random.Random) -> str:
    machine, program = apps.on(chance), chance.choice(_MODULES + _BESIDE)
    fault = chance.choice([faults.kill, faults.freeze])
    fault(machine, program)
    return f"{fault.__name__} {program} of {machine.name}"


def hit_container(apps: Apps, chance: random.Random) -> str:
    name = chance.choice(APPS)
    machine = next(machine for machine in apps.machines if machine.is_on and runs(machine, name))
    program = chance.choice([f"app:{name}", "conmon"])
    faults.kill(machine, program)
    return f"kill {program} of {machine.name}"


def stop_container_for_a_while(apps: Apps, chance: random.Random) -> str:
    name, seconds = chance.choice(APPS), chance.uniform(0.3, 3.0)
    machine = next(machine for machine in apps.machines if machine.is_on and runs(machine, name))
    with faults.frozen(machine, f"app:{name}"):
        time.sleep(seconds)
    return f"{name} on {machine.name} stood still for {seconds:.1f} s"


def stop_machine_for_a_while(apps: Apps, chance: random.Random) -> str:
    machine, seconds = apps.on(chance), chance.uniform(0.3, 6.0)
    faults.freeze(machine)
    time.sleep(seconds)
    apps.trial.oracle.wakes(machine)
    faults.thaw(machine)
    return f"{machine.name} stood still for {seconds:.1f} s"


def cut_off(apps: Apps, chance: random.Random) -> str:
    machine, seconds = apps.on(chance), chance.uniform(0.3, 6.0)
    others = [each.name for each in apps.machines if each is not machine]
    faults.partition(apps.trial.cluster, [machine.name], others, one_way=chance.random() < 0.3)
    time.sleep(seconds)
    faults.heal(apps.trial.cluster)
    return f"{machine.name} was cut off for {seconds:.1f} s"


def lose_power(apps: Apps, chance: random.Random) -> str:
    """One at a time: two of three make no quorum, and nothing is led."""
    machine = apps.on(chance)
    off = [each for each in apps.machines if not each.is_on]
    if off:
        apps.trial.power_on(*off)
    faults.power_off(machine)
    return f"{machine.name} lost its power"


def end_tree(apps: Apps, chance: random.Random) -> str:
    machine = apps.on(chance)
    faults.kill(machine, "supervisor")
    by_service_manager(machine)
    return f"the tree of {machine.name} was killed and started anew"


def move(apps: Apps, chance: random.Random) -> str:
    """The next fault comes while it is under way."""
    name, by, to = chance.choice((*APPS, "kernel")), apps.on(chance), chance.choice(apps.machines)
    asking(lambda: by.ctl("leaders", "switchover", name, "--to", to.name, timeout_s=40))
    return f"{name} was moved to {to.name} by {by.name}"


def drain(apps: Apps, chance: random.Random) -> str:
    by, node = apps.on(chance), chance.choice(apps.machines)
    asking(lambda: by.ctl("nodes", "drain", node.name, timeout_s=40))
    return f"{node.name} was drained by {by.name}"


FAULTS: tuple[Callable[[Apps, random.Random], str], ...] = (
    hit_process, hit_process, hit_process, hit_container, stop_container_for_a_while, stop_machine_for_a_while, cut_off,
    lose_power, end_tree, move, move, drain,
)  # fmt: skip


def test_whatever_happens_each_app_acts_once_at_a_time_and_in_the_end_runs_on_one_node(
    apps: Apps, chance: random.Random
) -> None:
    trial, happened, hits = apps.trial, [], 0
    for _ in range(FAULTS_A_ROUND):
        fault = chance.choice(FAULTS)
        try:
            happened.append(fault(apps, chance))
            hits += 1
        except (AssertionError, LookupError, OSError, StopIteration, subprocess.SubprocessError) as error:
            happened.append(f"{fault.__name__} found nothing to hit: {error}")  # after another fault: also a case
        time.sleep(chance.uniform(0.0, 2.0))
    print("; ".join(happened))
    assert hits, happened
    apps.restored()
    for name in APPS:
        until(lambda name=name: apps.whole(name), f"{name} runs on one node and all answer for it, after {happened}", 60, 0.2)  # type: ignore[misc]
    trial.settled()

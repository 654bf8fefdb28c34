"""What goes wrong, as functions, and how each is taken back. None needs a switch in the product.

A `program` is a module (`persistence`), a program beside them (`leash.0`, `podman`), `supervisor`, `zygote`, `app:NAME` (the
first process of its container), or any other by the name of its file (`conmon`, `gocryptfs`, `etcd`: all that run).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from tests.bed.cluster import Cluster
from tests.bed.machine import Machine
from tests.node import until

ETCD_PORTS = (2379, 2380)


def kill(machine: Machine, *programs: str) -> None:
    """SIGKILL, to all of them as nearly at once as a loop can."""
    _signal(machine, programs, signal.SIGKILL)


def freeze(machine: Machine, *programs: str) -> None:
    """SIGSTOP; with no program named, everything on the machine stands still at an instant, containers included."""
    if programs:
        _signal(machine, programs, signal.SIGSTOP)
    else:
        machine.cgroups.freeze()
        until(machine.cgroups.is_frozen, f"{machine.name} stands still")


def thaw(machine: Machine, *programs: str) -> None:
    if programs:
        _signal(machine, programs, signal.SIGCONT)
    else:
        machine.cgroups.thaw()


@contextmanager
def frozen(machine: Machine, *programs: str) -> Iterator[None]:
    """SIGSTOP, and SIGCONT to the same processes, if they are still there: a frozen supervisor cannot say which those were."""
    pids = [pid for program in programs for pid in _found(machine, program)]
    _send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _send(pids, signal.SIGCONT)


def partition(
    cluster: Cluster, some: Iterable[str], others: Iterable[str], *, one_way: bool = False, ports: Iterable[int] = ()
) -> None:
    """Nothing passes between the members of two groups, machines or `client`. Adds to the partitions that there are.

    `one_way`: what some send to others is lost, the other direction passes. `ports`: TCP of these ports alone
    (ETCD_PORTS: the store only). Whoever runs the bed still reaches every member, and the oracle hears them.
    """
    some, others = tuple(some), tuple(others)
    cluster.network.part(some, others, ports)
    if not one_way:
        cluster.network.part(others, some, ports)


def heal(cluster: Cluster) -> None:
    """No partition any more."""
    cluster.network.heal()


def power_off(machine: Machine) -> None:
    """No farewell to anybody, unsynced writes lost, nothing left of its processes, mounts and run folder."""
    machine.power_off()


def power_on(machine: Machine, within_s: float = 20.0) -> None:
    """A new boot: other boot id, empty run folder, same disk, same addresses; partitions hold on."""
    machine.power_on(within_s)


def freeze_disk(machine: Machine) -> None:
    """Every write of the machine waits until `thaw_disk`, as on a disk that does not answer."""
    machine.disk.freeze(machine.mount)


def thaw_disk(machine: Machine) -> None:
    machine.disk.thaw(machine.mount)


def fill_disk(machine: Machine, leave_bytes: int = 0) -> None:
    machine.disk.fill(machine.mount, leave_bytes)


def empty_disk(machine: Machine) -> None:
    """Takes `fill_disk` back."""
    machine.disk.empty(machine.mount)


def _signal(machine: Machine, programs: Iterable[str], number: int) -> None:
    _send([pid for program in programs for pid in _found(machine, program)], number)


def _send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _found(machine: Machine, program: str) -> list[int]:
    """Raises AssertionError when there is none: a fault that hits nothing proves nothing."""
    pids = list(_pids(machine, program))
    assert pids, f"{machine.name} runs no {program}"
    return pids


def _pids(machine: Machine, program: str) -> Iterator[int]:
    if program == "supervisor":
        assert machine.process is not None
        yield machine.process.pid
    elif program == "zygote":
        yield machine.members()[int(machine.supervisor("tree")["zygote"]["pid"])]
    elif program.startswith("app:"):
        name = f"piccolo-{program.removeprefix('app:')}"
        yield machine.members()[int(machine.podman("inspect", "--format", "{{.State.Pid}}", name))]
    elif program in machine.modules():
        yield machine.pid(program)
    else:
        yield from machine.named(program)

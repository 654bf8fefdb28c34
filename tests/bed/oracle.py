"""Decides whether two actors of one resource ever acted at the same time .

Actors send a line every 10 ms over TCP, `RESOURCE EPOCH RUN BOOTTIME`, stamped by the host's one clock at the actor: an app
by its command (`app_command`), a holder of the gate by `python -m tests.bed.gate_holder`. Partitions never stand between a
member and whoever runs the bed, so an actor that is cut off from everybody is still heard. The sender's address says on
which machine it is. What came is kept in one file, a line a stamp.
"""

from __future__ import annotations

import itertools
import selectors
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

from piccolod import clock
from tests.bed.cluster import Cluster
from tests.bed.machine import Machine
from tests.bed.network import HOST

# /proc/uptime, which a shell can read without another process, has hundredths, cut off (proc(5)).
RESOLUTION_S = 0.01
# g + s + F of leadership.md, generously for machines that share two processors: the tick of the guards alone is 50 ms.
WAKE_S = 0.3


@dataclass(frozen=True, slots=True)
class Stamp:
    """`run` names one process: what it did is one interval. `epoch` is 0 where the actor does not know its own."""

    resource: str
    epoch: int
    node: str
    run: str
    at: float


@dataclass(frozen=True, slots=True)
class Interval:
    """From the first act of one actor to its last."""

    resource: str
    epoch: int
    node: str
    run: str
    first_at: float
    last_at: float

    def __str__(self) -> str:
        return (
            f"{self.resource} on {self.node}, epoch {self.epoch}, run {self.run[:8]}: {self.first_at:.2f} to {self.last_at:.2f}"
        )


def intervals(stamps: Iterable[Stamp]) -> list[Interval]:
    """In the order of their beginning."""
    spans: dict[tuple[str, int, str, str], tuple[float, float]] = {}
    for stamp in stamps:
        key = (stamp.resource, stamp.epoch, stamp.node, stamp.run)
        first, last = spans.get(key, (stamp.at, stamp.at))
        spans[key] = min(first, stamp.at), max(last, stamp.at)
    return sorted((Interval(*key, *span) for key, span in spans.items()), key=lambda one: one.first_at)


def violations(stamps: Iterable[Stamp]) -> list[str]:
    """Two actors of a resource whose intervals overlap, and a later actor with a lower epoch. Pure."""
    found = []
    by_resource = sorted(intervals(stamps), key=lambda one: one.resource)
    for _, group in itertools.groupby(by_resource, key=lambda one: one.resource):
        for earlier, later in itertools.combinations(group, 2):
            if later.first_at < earlier.last_at - RESOLUTION_S:
                found.append(f"at the same time: {earlier} | {later}")
            if earlier.epoch and later.epoch and later.epoch < earlier.epoch:
                found.append(f"a lower epoch later: {earlier} | {later}")
    return found


class Oracle:
    """Listens on the bridge's own address. `check` at any time."""

    def __init__(self, cluster: Cluster) -> None:
        self.file: Path = cluster.folder / "acts"
        self._names = {cluster.network.address(machine.name): machine.name for machine in cluster.machines}
        self._stamps: list[Stamp] = []
        self._woken: list[tuple[str, float]] = []
        self._listener = socket.create_server((cluster.network.address(HOST), 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._listener, selectors.EVENT_READ)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Oracle:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(5)
        for key in tuple(self._ready.get_map().values()):
            cast(socket.socket, key.fileobj).close()
        self._ready.close()

    def stamps(self, resource: str | None = None) -> list[Stamp]:
        return [stamp for stamp in tuple(self._stamps) if resource in (None, stamp.resource)]

    def wakes(self, machine: Machine) -> None:
        """A whole machine that stood still goes on, about now: before its guards run again a container may act for a moment.

        leadership.md says so, and how long: it is the one thing that is not promised.
        """
        self._woken.append((machine.name, clock.now()))

    def check(self) -> None:
        """Raises AssertionError with every overlap."""
        found = violations(stamp for stamp in self.stamps() if not self._is_excused(stamp))
        assert not found, "\n".join(found)

    def app_command(self, resource: str) -> str:
        """For a manifest, beside `permissions: {network: {internet: allow}}`: serves port 80, and says each 10 ms that it acts.

        Reading from a pipe that nobody writes to is a sleep without another process.
        """
        host, port = self.address
        script = (
            f"busybox httpd -f -p 80 -h /www & busybox mkfifo /tmp/never; exec 3<>/tmp/never; "
            f"run=$(cat /proc/sys/kernel/random/uuid); trap 'exit 0' TERM; "
            f"while :; do while read -r at rest </proc/uptime && echo {resource} 0 $run $at; do read -r -t 0.01 never <&3; done"
            f" | busybox nc {host} {port}; done"
        )
        return f'command: [/bin/sh, -c, "{script}"]\npermissions: {{network: {{internet: allow}}}}\n'

    def _is_excused(self, stamp: Stamp) -> bool:
        return any(node == stamp.node and at - RESOLUTION_S <= stamp.at <= at + WAKE_S for node, at in self._woken)

    def _listen(self) -> None:
        begun: dict[socket.socket, bytes] = {}
        with self.file.open("a", buffering=1) as file:
            while not self._end.is_set():
                for key, _ in self._ready.select(0.1):
                    link = cast(socket.socket, key.fileobj)
                    if link is self._listener:
                        actor, _ = link.accept()
                        begun[actor] = b""
                        self._ready.register(actor, selectors.EVENT_READ)
                        continue
                    try:
                        data = link.recv(65536)
                        node = self._names[link.getpeername()[0]]
                    except OSError:  # its machine lost power
                        data = b""
                    *lines, begun[link] = (begun[link] + data).split(b"\n")
                    for line in lines:
                        self._note(node, line.decode(), file)
                    if not data:
                        self._ready.unregister(link)
                        link.close()

    def _note(self, node: str, line: str, file: TextIO) -> None:
        resource, epoch, run, at = line.split()
        stamp = Stamp(resource, int(epoch), node, run, float(at))
        self._stamps.append(stamp)
        file.write(f"{stamp.resource} {stamp.epoch} {stamp.node} {stamp.run} {stamp.at:.3f}\n")

"""Whether a process hangs in the kernel: a thread of it waits for a disk and has not run once meanwhile.

Nothing is asked of the process, which cannot answer, and nothing is written to the disk: a stuck fsync shows as a thread in
state D whose count of context switches stands still. A disk that is merely slow lets its waiters run now and then.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple


class Wait(NamedTuple):
    """Of one thread in state D."""

    switches: int
    since: float


def step(before: Mapping[int, Wait], waiting: Mapping[int, int], now: float) -> dict[int, Wait]:
    """Who waits since when. `waiting`: thread -> context switches, of those in state D now. Pure."""
    return {
        thread: before[thread] if thread in before and before[thread].switches == switches else Wait(switches, now)
        for thread, switches in waiting.items()
    }


class Stall:
    """Of one process, looked at again and again."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._waits: dict[int, Wait] = {}

    def look(self, now: float) -> float:
        """For how many seconds its longest wait has lasted, as far as the looks have seen."""
        self._waits = step(self._waits, _waiting(self._pid), now)
        return max((now - wait.since for wait in self._waits.values()), default=0.0)


def _waiting(pid: int) -> dict[int, int]:
    """Threads in state D; a thread or process that has ended is none."""
    found = {}
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            switches = _switches(f"/proc/{pid}/task/{thread}")
            if switches >= 0:
                found[int(thread)] = switches
    except OSError:
        pass
    return found


def _switches(thread: str) -> int:
    """-1: it does not wait."""
    try:
        with open(f"{thread}/stat", "rb") as file:
            if file.read().rpartition(b")")[2].split(maxsplit=1)[0] != b"D":
                return -1
        with open(f"{thread}/status", "rb") as file:
            return sum(int(line.split()[1]) for line in file if b"_ctxt_switches:" in line)
    except (OSError, IndexError, ValueError):
        return -1

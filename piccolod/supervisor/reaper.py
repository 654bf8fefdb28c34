"""Who of our children has ended: every child is reaped here and nowhere else, strangers too.

The supervisor adopts orphans, so children appear that it never made (what a module left behind). What the zygote makes is
announced before it may become a module: from then on it can be ended by its pid, and its end is kept until it is expected.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Final

from piccolod.supervisor import rights
from piccolod.supervisor.loop import Loop

_ANNOUNCED: Final = 64


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended: exit code, or the signal that killed it."""

    code: int = 0
    signal: int = 0

    def __str__(self) -> str:
        if not self.signal:
            return f"exit code {self.code}"
        try:
            return f"killed by {signal.Signals(self.signal).name}"
        except ValueError:
            return f"killed by signal {self.signal}"


OnEnd = Callable[[Ending], None]


class Reaper:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._expected: dict[int, OnEnd] = {}
        self._announced: dict[int, Ending | None] = {}
        self._walked: set[int] = set()
        self.ask: Callable[[], None] = lambda: None  # hears announcements that are on their way

    def announce(self, pid: int) -> None:
        """A child that will be expected, or not. Whoever is no child of ours is ignored."""
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        self._announced.pop(pid, None)
        self._announced[pid] = None
        while len(self._announced) > _ANNOUNCED:
            del self._announced[next(iter(self._announced))]

    def is_announced(self, pid: int) -> bool:
        return pid in self._announced

    def end_announced(self, pid: int) -> None:
        """Nobody wants it any more: it is killed, wherever it is on its way to become a module."""
        if pid in self._announced and self._announced.pop(pid) is None:
            os.kill(pid, signal.SIGKILL)  # ours, and not reaped: its number is nobody else's

    def end_all_announced(self) -> None:
        for pid in list(self._announced):
            self.end_announced(pid)

    def expect(self, pid: int, on_end: OnEnd, *, walked: bool = False) -> bool:
        """Calls `on_end` when `pid` has ended. False: it has already, and the call comes in the next turn.

        `walked`: somebody looks at its threads below /proc/PID/task. To reap it then is to wait, spinning, for its last
        thread to leave there; in real time on the same CPU that thread never runs, until the kernel throttles us after a
        second (measured, Linux 6.18).
        """
        if walked:
            self._walked.add(pid)
        ending = self._announced.pop(pid, None)
        if ending is None:
            self._expected[pid] = on_end
            return True
        self._loop.after(0.0, lambda: on_end(ending))
        return False

    def reap(self) -> None:
        """On SIGCHLD."""
        while (found := self._peek()) is not None:
            pid, ending = found
            if pid not in self._expected and pid not in self._announced:
                self.ask()  # what it was announced with was sent before it could end
            on_end = self._expected.pop(pid, None)
            if on_end is not None:
                # While it is not reaped its number is nobody else's: what it left in its process group ends with it.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
            with rights.ordinary_priority() if pid in self._walked else nullcontext(), suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
            self._walked.discard(pid)
            if on_end is not None:
                try:
                    on_end(ending)
                except Exception:
                    self._loop.after(0.0, self.reap)  # the others have ended all the same, and no signal tells of them again
                    raise
            elif pid in self._announced:
                self._announced[pid] = ending

    def _peek(self) -> tuple[int, Ending] | None:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return None
        if found is None:
            return None
        if found.si_code == os.CLD_EXITED:
            return found.si_pid, Ending(code=found.si_status)
        return found.si_pid, Ending(signal=found.si_status)

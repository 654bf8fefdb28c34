"""Who of our children has ended: every child is reaped here and nowhere else, strangers too.

The supervisor adopts orphans, so children appear that it never made (what a module left behind). A module forked by the
zygote may also end before the zygote has reported its pid; its end is kept until then.
"""

from __future__ import annotations

import os
import signal
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Final

from piccolod.supervisor import rights
from piccolod.supervisor.loop import Loop

_REMEMBERED: Final = 64


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
        self._walked: set[int] = set()
        self._strangers: OrderedDict[int, Ending] = OrderedDict()
        self.remember: Callable[[], bool] = lambda: False  # whether a stranger may be one whose pid is still to be reported

    def expect(self, pid: int, on_end: OnEnd, *, walked: bool = False) -> bool:
        """Calls `on_end` when `pid` has ended. False: it has already, and the call comes in the next turn.

        `walked`: somebody looks at its threads below /proc/PID/task. To reap it then is to wait, spinning, for its last
        thread to leave there; in real time on the same CPU that thread never runs, until the kernel throttles us after a
        second (measured, Linux 6.18).
        """
        if walked:
            self._walked.add(pid)
        ending = self._strangers.pop(pid, None)
        if ending is None:
            self._expected[pid] = on_end
            return True
        self._loop.after(0.0, lambda: on_end(ending))
        return False

    def reap(self) -> None:
        """On SIGCHLD."""
        while (found := self._peek()) is not None:
            pid, ending = found
            on_end = self._expected.pop(pid, None)
            if on_end is not None:
                # While it is not reaped its number is nobody else's: what it left in its process group ends with it.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
            with rights.ordinary_priority() if pid in self._walked else nullcontext(), suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
            self._walked.discard(pid)
            if on_end is not None:
                on_end(ending)
            elif self.remember():
                self._strangers[pid] = ending
                while len(self._strangers) > _REMEMBERED:
                    self._strangers.popitem(last=False)

    def forget_strangers(self) -> None:
        """Once no fork is under way: a number of theirs may be given out again."""
        self._strangers.clear()

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

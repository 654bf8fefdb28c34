"""The supervisor's own log: a line an event, on stderr and in `supervisor.log`, never waiting for a reader."""

from __future__ import annotations

import os
import select
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_LINE_BYTES: Final = 2048  # a pipe that takes anything takes this whole
_LEVELS: Final = ("debug", "info", "warning", "error")


class Say:
    def __init__(self, least: str = "info") -> None:
        self.keep: Callable[[bytes], None] = lambda _line: None
        self._least = _LEVELS.index(least)
        self._poll = select.poll()
        self._poll.register(2, select.POLLOUT)

    def __call__(self, level: str, event: str, **facts: object) -> None:
        line = _line(level, event, facts)
        self.keep(line)
        if _LEVELS.index(level) >= self._least:
            self.print(line)

    def bug(self, error: BaseException) -> None:
        """Ours; what was being done is abandoned, the loop goes on."""
        self("error", "bug", error=repr(error), traceback="".join(traceback.format_exception(error)[-4:]))

    def print(self, line: bytes) -> None:
        """To stderr if that takes it now: a terminal that is stopped must stop nobody else."""
        with suppress(OSError):
            ready = self._poll.poll(0)
            if ready and ready[0][1] & select.POLLOUT:
                os.write(2, line)


def _line(level: str, event: str, facts: dict[str, object]) -> bytes:
    now = time.time()
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
    words = " ".join(f"{name}={_word(value)}" for name, value in facts.items())
    text = f"{at} {level:7} {event} {words}".rstrip().replace("\n", "\\n")
    return text.encode(errors="replace")[: _LINE_BYTES - 1] + b"\n"


def _word(value: object) -> str:
    text = str(value)
    return f'"{text}"' if " " in text or not text else text

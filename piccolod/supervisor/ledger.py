"""The ledger of deaths: why each module ended, with its last words. Kept over a restart of the supervisor."""

from __future__ import annotations

import json
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from piccolod.supervisor.disk import Disk
from piccolod.supervisor.loop import Loop

_SAVE_S: Final = 0.1
_DEATHS: Final = 16  # a module
_WITH_WORDS: Final = 3
_WORDS_BYTES: Final = 4 * 1024
_FRAME_BYTES: Final = 150 * 1024  # of the way to the disk
_FILE_BYTES: Final = 512 * 1024


class Death(NamedTuple):
    """`at_ms` is wall clock, for people. `planned`: somebody asked for it."""

    module: str
    at_ms: int
    pid: int
    instance: str
    reason: str
    exit_code: int
    signal: int
    uptime_s: float
    planned: bool
    log: tuple[str, ...]


class Ledger:
    def __init__(self, loop: Loop, file: Path, disk: Disk) -> None:
        self._loop = loop
        self._file = file
        self._disk = disk
        self._saving = False
        self._deaths: dict[str, deque[Death]] = {}

    def load(self) -> None:
        """An unreadable ledger is an empty one: it is for people, nothing depends on it."""
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            if self._file.stat().st_size <= _FILE_BYTES:
                for raw in json.loads(self._file.read_bytes())["deaths"]:
                    self._keep(Death(**{**raw, "log": tuple(map(str, raw["log"]))}))

    def add(self, death: Death) -> None:
        self._keep(death)
        if not self._saving:
            # Later, and once for many: the module that died is to be back first.
            self._saving = True
            self._loop.after(_SAVE_S, self.save)

    def save(self) -> None:
        self._saving = False
        deaths = [each._asdict() for kept in self._deaths.values() for each in kept]
        text = _text(deaths)
        if len(text) > _FRAME_BYTES:
            text = _text([{**each, "log": []} for each in deaths])
        self._disk.replace(self._file, text)

    def of(self, module: str) -> list[Death]:
        """Oldest first."""
        return list(self._deaths.get(module, ()))

    def _keep(self, death: Death) -> None:
        kept = self._deaths.setdefault(death.module, deque(maxlen=_DEATHS))
        kept.append(death)
        if len(kept) > _WITH_WORDS:
            older = kept[-_WITH_WORDS - 1]
            kept[-_WITH_WORDS - 1] = older._replace(log=())


def _text(deaths: list[dict[str, Any]]) -> bytes:
    return json.dumps({"deaths": deaths}, separators=(",", ":")).encode()


def last_words(lines: list[str]) -> tuple[str, ...]:
    """The end of a log, small enough to be kept many times."""
    words: list[str] = []
    left = _WORDS_BYTES
    for line in reversed(lines):
        left -= len(line.encode())
        if left < 0:
            break
        words.append(line)
    return tuple(reversed(words))

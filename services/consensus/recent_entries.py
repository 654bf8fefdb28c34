"""The newest entries of the log, as the watch brought them: who follows a commit needs no read of etcd for it."""

from __future__ import annotations

from collections import deque
from typing import Final

from piccolod.protocol.log import SealedEntry

_ENTRIES: Final = 64
_BYTES: Final = 1 << 20


class RecentEntries:
    """One run without a gap, bounded in entries and in bytes. Nothing is believed because it is here: whoever takes an entry
    verifies it, and whoever needs to know where the log ends now asks etcd for its head."""

    def __init__(self) -> None:
        self._run: deque[SealedEntry] = deque()
        self._bytes = 0

    def put(self, entry: SealedEntry) -> None:
        """What comes with a gap before it begins a new run."""
        if self._run and entry.rev != self._run[-1].rev + 1:
            self.clear()
        self._run.append(entry)
        self._bytes += len(entry.sealed)
        while len(self._run) > 1 and (len(self._run) > _ENTRIES or self._bytes > _BYTES):
            self._bytes -= len(self._run.popleft().sealed)

    def clear(self) -> None:
        self._run.clear()
        self._bytes = 0

    def after(self, rev: int, limit: int, limit_bytes: int) -> tuple[SealedEntry, ...]:
        """The entries from `rev` + 1 on, at least one; empty where the next one is not here."""
        if not self._run or not self._run[0].rev <= rev + 1 <= self._run[-1].rev:
            return ()
        found: list[SealedEntry] = []
        for index in range(rev + 1 - self._run[0].rev, len(self._run)):
            entry = self._run[index]
            limit_bytes -= len(entry.sealed)
            if found and (limit_bytes < 0 or len(found) == limit):
                break
            found.append(entry)
        return tuple(found)

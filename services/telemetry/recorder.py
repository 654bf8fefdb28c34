"""From the bus into the journal: in batches, never blocking the loop, never dying of a full disk."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from piccolod import clock
from piccolod.protocol.base import Event
from piccolod.protocol.events import EVENTS, Audit, as_mapping
from services.telemetry.journal import Entry, Journal, damaged

_BATCH_S: Final = 0.1
_AGAIN_S: Final = 1.0
_WAITING: Final = 5000
_PRUNE_EVERY: Final = 2000  # events
_NOBODY: Final = "nobody"


class Recorder:
    """`on_written()` after each batch; `on_trouble(reason)` when writing fails, with "" when it works again."""

    def __init__(
        self, journal: Journal, node: str, days: int, on_written: Callable[[], None], on_trouble: Callable[[str], None]
    ) -> None:
        self._journal = journal
        self._node = node
        self._days = days
        self._on_written = on_written
        self._on_trouble = on_trouble
        self._waiting: deque[Entry] = deque()
        self._wake = asyncio.Event()
        self._last: dict[tuple[str, str], dict[str, Any]] = {}
        self._since_prune = 0
        self._trouble = ""
        self.lost = 0

    def know(self, latest: dict[tuple[str, str], dict[str, Any]]) -> None:
        """State that is in the journal already: hearing it again is no event."""
        self._last = latest | self._last

    def hear(self, event: Event) -> None:
        body, key = as_mapping(event), event.key()
        if event.retained:
            if self._last.get((event.type, key)) == body:
                return
            self._last[event.type, key] = body
        if len(self._waiting) >= _WAITING:
            self._waiting.popleft()
            self.lost += 1
        minor = isinstance(event, Audit) and event.actor == _NOBODY
        self._waiting.append(Entry(event.type, key, clock.wall_ms(), self._node, body, minor))
        self._wake.set()

    async def run(self) -> None:
        await self._prune()
        while True:
            await self._wake.wait()
            await asyncio.sleep(_BATCH_S)
            if not await self.flush():
                await asyncio.sleep(_AGAIN_S)

    async def flush(self) -> bool:
        """Writes what waits. False: it still waits."""
        self._wake.clear()
        batch, self._waiting = self._waiting, deque()
        if not batch:
            return True
        try:
            await asyncio.to_thread(self._journal.append, batch)
        except (sqlite3.Error, OSError) as error:
            self._put_back(batch)
            await self._failed(error)
            return False
        self._settled()
        self._on_written()
        self._since_prune += len(batch)
        if self._since_prune >= _PRUNE_EVERY:
            await self._prune()
        return True

    async def check(self) -> None:
        """Looks for damage that a start does not see, and begins a new journal when it finds some."""
        problem = await asyncio.to_thread(self._journal.check)
        if problem:
            await self._begin_anew(problem)

    async def failed_reading(self, error: sqlite3.Error) -> None:
        await self._failed(error)

    def _put_back(self, batch: deque[Entry]) -> None:
        """In front of what came meanwhile; the oldest are dropped when it is too much."""
        batch.extend(self._waiting)
        while len(batch) > _WAITING:
            batch.popleft()
            self.lost += 1
        self._waiting = batch
        self._wake.set()

    async def _failed(self, error: sqlite3.Error | OSError) -> None:
        if isinstance(error, sqlite3.Error) and damaged(error):
            await self._begin_anew(str(error))
            return
        self._trouble = f"events cannot be written: {error}"
        self._on_trouble(f"{self._trouble}; {len(self._waiting)} wait, {self.lost} are lost")

    async def _begin_anew(self, problem: str) -> None:
        try:
            await asyncio.to_thread(self._journal.begin_anew)
        except (sqlite3.Error, OSError) as error:
            self._trouble = f"the journal is damaged ({problem}) and no new one can be begun: {error}"
            self._on_trouble(self._trouble)
            return
        self._last.clear()
        self._on_trouble("")

    def _settled(self) -> None:
        if self._trouble:
            self._trouble = ""
            self._on_trouble("")

    async def _prune(self) -> None:
        self._since_prune = 0
        try:
            await asyncio.to_thread(self._journal.prune, self._days, clock.wall_ms())
        except (sqlite3.Error, OSError) as error:
            await self._failed(error)


RETAINED: Final = tuple(name for name, kind in EVENTS.items() if kind.retained)

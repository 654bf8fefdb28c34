"""The telemetry module: remembers what happened, and counts."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from typing import Any, Final, TypeVar

from piccolod import clock
from piccolod.errors import Invalid, PiccoloError, Unavailable
from piccolod.kernel import ROUTERS
from piccolod.module import Caller, Module
from piccolod.protocol.base import Event, Level, Request
from piccolod.protocol.consensus import GetLeadership
from piccolod.protocol.events import EVENTS, Beat, ControlRevChanged
from piccolod.protocol.persistence import GetRevision
from piccolod.protocol.router import GetRoutes
from piccolod.protocol.telemetry import EventRecords, GetEvents, GetMetrics, MetricsText
from services.telemetry import figures
from services.telemetry.figures import Asked, Figures
from services.telemetry.journal import Journal
from services.telemetry.recorder import RETAINED, Recorder

_LIMIT_MOST: Final = 1000
_WAIT_MOST_S: Final = 60.0
_ASK_S: Final = 1.0
_CHECK_EVERY_S: Final = 6 * 3600.0
_CHECK_FIRST_S: Final = 5.0
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# The beat is no event, and a hint that a rev was announced is followed by its commit.
_NOT_KEPT: Final = frozenset({Beat.type, ControlRevChanged.type})

R = TypeVar("R")


class Service:
    def __init__(self, module: Module) -> None:
        self._module = module
        self._figures = Figures()
        self._written = asyncio.Event()
        self._trouble = ""
        self._journal: Journal
        self._recorder: Recorder

    async def start(self) -> None:
        module = self._module
        self._journal = Journal(module.paths.journal)
        self._recorder = Recorder(
            self._journal, module.config.node.name, module.config.telemetry.journal_days, self._pulse, self._on_trouble
        )
        self._recorder.know(self._journal.latest(RETAINED))
        for name, kind in EVENTS.items():
            if name != Beat.type:
                module.on(kind, self._hear)
        module.on_resync(self._on_resync)
        module.serve(GetEvents, self._events)
        module.serve(GetMetrics, self._metrics)
        module.spawn(self._recorder.run(), name="recorder")
        module.spawn(self._check(), name="check")
        self._judge()

    async def stop(self) -> None:
        await self._recorder.flush()
        self._journal.close()

    # --- hearing

    def _hear(self, event: Event) -> None:
        self._figures.hear(event)
        if event.type not in _NOT_KEPT:
            self._recorder.hear(event)

    def _on_resync(self) -> None:
        self._figures.resyncs += 1

    def _pulse(self) -> None:
        """Wakes whoever waits for the next event; the next waiters get an event of their own."""
        self._written.set()
        self._written = asyncio.Event()

    def _on_trouble(self, reason: str) -> None:
        if reason and not self._trouble:
            self._module.log.error("cannot keep events", reason=reason)
        self._trouble = reason
        self._judge()

    def _judge(self) -> None:
        aside = self._journal.set_aside
        if self._trouble:
            self._module.health(Level.WARN, self._trouble)
        elif aside:
            self._module.health(Level.WARN, f"the event journal was damaged and begun anew; the old one is {aside}")
        else:
            self._module.health(Level.OK)

    async def _check(self) -> None:
        await asyncio.sleep(_CHECK_FIRST_S)
        while True:
            await self._recorder.check()
            await asyncio.sleep(_CHECK_EVERY_S)

    # --- commands

    async def _events(self, request: GetEvents, caller: Caller) -> EventRecords:
        if not 1 <= request.limit <= _LIMIT_MOST:
            raise Invalid(f"limit must be 1 to {_LIMIT_MOST}, not {request.limit}")
        until = min(clock.now() + min(request.wait_s, _WAIT_MOST_S), caller.deadline_at - 0.5)
        while True:
            written = self._written
            found = await self._read(request)
            left_s = until - clock.now()
            if found.events or left_s <= 0:
                return found
            try:
                async with asyncio.timeout(left_s):
                    await written.wait()
            except TimeoutError:
                return found

    async def _read(self, request: GetEvents) -> EventRecords:
        try:
            return await asyncio.to_thread(
                self._journal.read, request.after, request.limit, request.type, request.key
            )  # fmt: skip
        except sqlite3.Error as error:
            await self._recorder.failed_reading(error)
            raise Unavailable(f"the event journal cannot be read: {error}", hint="try again") from error

    async def _metrics(self, request: GetMetrics, caller: Caller) -> MetricsText:
        revision, leaderships, *routes = await asyncio.gather(
            self._ask(GetRevision()),
            self._ask(GetLeadership()),
            *(self._ask(GetRoutes(), target=name) for name in ROUTERS),
        )
        asked = Asked(
            revision=revision,
            leaderships=leaderships and leaderships.leaderships,
            routes=tuple(route for answer in routes if answer for route in answer.routes),
            routers_silent=sum(answer is None for answer in routes),
            journal_last_id=self._journal.last_id,
            journal_lost=self._recorder.lost,
        )
        return MetricsText(text=figures.text(self._figures, asked, _rss_bytes))

    async def _ask(self, request: Request[R], target: str | None = None) -> Any:
        """The answer, or None: one module that is being restarted must not cost the whole scrape."""
        try:
            return await self._module.call(request, timeout_s=_ASK_S, target=target)
        except PiccoloError:
            return None


def _rss_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0

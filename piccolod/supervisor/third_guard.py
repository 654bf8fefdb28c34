"""The supervisor as the third guard: kills led containers whose term is over, beside the two leashes and apps.

As it looks often, it is also the one that makes a lost deadline page anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from piccolod import clock
from piccolod.leadership import leash_table
from piccolod.leadership.guard import CALM_S, next_look_s, overdue
from piccolod.leadership.leash_table import TableReader
from piccolod.leadership.page import Page, PageReader
from piccolod.leadership.page_keeper import PageKeeper
from piccolod.paths import Paths
from piccolod.supervisor.loop import Loop

_RENEW_S: Final = 1.0  # something may take it away again and again


class ThirdGuard:
    def __init__(
        self,
        loop: Loop,
        paths: Paths,
        keeper: PageKeeper,
        tick: Callable[[], None],
        on_renewed: Callable[[], None],
        say: Callable[..., None],
    ) -> None:
        """`tick` shows others that this process acts. `on_renewed`: there is an empty page, for consensus to fill."""
        self._loop = loop
        self._keeper = keeper
        self._renewed_at = float("-inf")
        self._unread = 0  # looks in a row that found nothing whole on the page
        self._on_renewed = on_renewed
        self._boot_id = clock.boot_id()
        self._reader = PageReader(paths.page)
        self._table = TableReader(paths.leash)
        self._tick = tick
        self._say = say
        self._told: set[str] = set()

    def look(self) -> None:
        """Looks now, and again and again."""
        again_s = CALM_S
        try:
            self._tick()
            again_s = self._guard()
        finally:
            self._loop.after(again_s, self.look)

    def _guard(self) -> float:
        now = clock.now()
        entries = self._table.entries()
        page = self._reader.read()
        for entry in overdue(page, entries.values(), now, self._boot_id) if entries else ():
            if not leash_table.proven_dead(entry):
                leash_table.kill(entry)
                if entry.file not in self._told:
                    self._told.add(entry.file)
                    self._say("warning", "killed a container: its term is over", container=entry.container, epoch=entry.epoch)
        self._told &= entries.keys()
        self._keep_page(page, now)
        return next_look_s(page, now)

    def _keep_page(self, page: Page | None, now: float) -> None:
        self._unread = 0 if page is not None else self._unread + 1
        # A writer that laps us again and again looks the same, once.
        lost = self._keeper.lost() or ("nothing on it is whole" if self._unread > 1 else "")
        if lost and now - self._renewed_at >= _RENEW_S:
            self._renewed_at, self._unread = now, 0
            self._say("error", "the deadline page was lost, making it anew", reason=lost)
            try:
                self._keeper.renew()
            except OSError as error:
                self._say("error", "the deadline page cannot be made", reason=str(error))
            else:
                self._on_renewed()

"""What a guard kills: a pure rule for leashes, supervisor and apps alike. Standard library only."""

from __future__ import annotations

from piccolod.clock import FOREVER
from piccolod.leadership.leash_table import Entry
from piccolod.leadership.page import Page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Iterable  # noqa: UP035

# Guard tick `g`: how late a guard may notice what the page says.
GUARD_TICK_S: Final = 0.05
# Where no deadline runs; far less than the first deadline of a node that joins others is ahead.
CALM_S: Final = 0.25


def overdue(page: Page | None, table: Iterable[Entry], now: float, boot_id: str) -> list[Entry]:
    """The containers that must die now: past D_hard all of them, else those whose term has left the page.

    A closing term is still a term: its container is being stopped politely, and has until D_hard for it. No page, or one of
    an earlier boot, is a page without terms.
    """
    mine = (entry for entry in table if entry.boot_id == boot_id)
    if page is None or page.boot_id != boot_id or now >= page.hard_at:
        return list(mine)
    return [entry for entry in mine if not _holds(page, entry)]


def next_look_s(page: Page | None, now: float) -> float:
    """How long a guard may sleep: to the next tick, and not beyond D_hard while that is ahead.

    Longer on a node alone, whose page has no deadline: nobody else waits for a term that leaves it to be over.
    """
    if page is None or page.hard_at <= now:
        return GUARD_TICK_S
    return CALM_S if page.hard_at == FOREVER else min(GUARD_TICK_S, page.hard_at - now)


def _holds(page: Page, entry: Entry) -> bool:
    """Tokens begin anew with an etcd that was begun anew, while epochs go on: the pair names no two terms."""
    term = page.terms.get(entry.resource)
    return term is not None and (term.token, term.epoch) == (entry.token, entry.epoch)

"""How often somebody without a certificate may knock. Pure: time comes as an argument.

A join token has 130 random bits: nobody guesses it. What is bounded here is the work that a knock makes. Who brings a token
of this cluster has a share of its own, so that strangers cannot keep it out.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from piccolod.errors import TooMany

WINDOW_S: Final = 60.0
PER_SOURCE: Final = 10
ALL: Final = 60
KNOWN: Final = 30
_SOURCES_KEPT: Final = 1024


class Pace:
    def __init__(
        self, per_source: int = PER_SOURCE, all_sources: int = ALL, known: int = KNOWN, window_s: float = WINDOW_S
    ) -> None:  # fmt: skip
        self._per_source = per_source
        self._all_sources = all_sources
        self._most_known = known
        self._window_s = window_s
        self._sources: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque()
        self._known: deque[float] = deque()

    def admit(self, source: str, now: float, *, known: bool = False) -> None:
        """Counts a knock; `known`: of somebody who names a token that there is. Raises TooMany, and then it does not count."""
        own = self._sources.pop(source, deque())
        self._sources[source] = own
        if len(self._sources) > _SOURCES_KEPT:
            self._sources.popitem(last=False)
        shared, most_shared = (self._known, self._most_known) if known else (self._all, self._all_sources)
        for knocks, most in ((own, self._per_source), (shared, most_shared)):
            while knocks and now - knocks[0] >= self._window_s:
                knocks.popleft()
            if len(knocks) >= most:
                raise TooMany(
                    f"{most} attempts to join within {self._window_s:g} s",
                    hint="wait a moment",
                    retry_after_s=knocks[0] + self._window_s - now,
                )
        own.append(now)
        shared.append(now)

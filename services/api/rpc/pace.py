"""How often somebody without a certificate may knock. Pure: time comes as an argument.

A join token has 130 random bits: nobody guesses it. What is bounded here is the work that a knock makes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from piccolod.errors import TooMany

WINDOW_S: Final = 60.0
PER_SOURCE: Final = 10
ALL: Final = 60
_SOURCES_KEPT: Final = 1024


class Pace:
    def __init__(self, per_source: int = PER_SOURCE, all_sources: int = ALL, window_s: float = WINDOW_S) -> None:
        self._per_source = per_source
        self._all_sources = all_sources
        self._window_s = window_s
        self._sources: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque()

    def admit(self, source: str, now: float) -> None:
        """Counts a knock. Raises TooMany, and then it does not count."""
        own = self._sources.pop(source, deque())
        self._sources[source] = own
        if len(self._sources) > _SOURCES_KEPT:
            self._sources.popitem(last=False)
        for knocks, most in ((own, self._per_source), (self._all, self._all_sources)):
            while knocks and now - knocks[0] >= self._window_s:
                knocks.popleft()
            if len(knocks) >= most:
                raise TooMany(
                    f"{most} attempts to join within {self._window_s:g} s",
                    hint="wait a moment",
                    retry_after_s=knocks[0] + self._window_s - now,
                )
        own.append(now)
        self._all.append(now)

"""How many guesses a password gets. Pure: time comes as an argument.

An attempt is charged when it is admitted and given back when it was right, so that guesses sent at once count like guesses
sent one by one. During a penalty nothing is admitted: a right answer neither, or the refusal would tell it apart.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import msgspec

from piccolod.errors import TooMany

FORGET_S: Final = 900.0
SOURCES_KEPT: Final = 1024


@dataclass(frozen=True, slots=True)
class Rule:
    """`free` attempts cost nothing; each one after them shuts the door for `first_s`, doubled each time up to `most_s`."""

    free: int
    first_s: float
    most_s: float


# A person mistypes; a dictionary does not stop. At most 12 guesses an hour from one source in the long run.
PER_SOURCE: Final = Rule(free=5, first_s=1.0, most_s=300.0)
# Many sources together. The ceiling is low: an attacker must not be able to lock the owner out for long.
GLOBAL: Final = Rule(free=30, first_s=1.0, most_s=30.0)


@dataclass(slots=True)
class _Count:
    charged: int = 0
    last_at: float = 0.0
    shut_until: float = 0.0


class Counts(msgspec.Struct, frozen=True):
    """What is charged, as of now: for the next life of the process. Each count is (charged, last at, shut until)."""

    all: tuple[int, float, float]
    sources: tuple[tuple[str, tuple[int, float, float]], ...]


class Limiter:
    def __init__(self, per_source: Rule = PER_SOURCE, all_sources: Rule = GLOBAL) -> None:
        self._per_source = per_source
        self._all_sources = all_sources
        self._sources: OrderedDict[str, _Count] = OrderedDict()
        self._all = _Count()

    def admit(self, source: str, now: float) -> None:
        """Charges an attempt. Raises TooMany, and then nothing is charged."""
        count = self._sources.get(source) or _Count()
        wait = max(count.shut_until, self._all.shut_until) - now
        if wait > 0:
            raise TooMany("too many wrong passwords", hint=f"try again in {wait:.0f} s", retry_after_s=round(wait, 3))
        self._sources[source] = count
        self._sources.move_to_end(source)
        while len(self._sources) > SOURCES_KEPT:
            self._sources.popitem(last=False)
        _charge(count, self._per_source, now)
        _charge(self._all, self._all_sources, now)

    def right(self, source: str) -> None:
        """The attempt was right: the source starts afresh, the others keep what they owe."""
        count = self._sources.pop(source, None)
        if count is not None:
            _give_back(self._all, self._all_sources)

    def excuse(self, source: str) -> None:
        """The attempt said nothing about the password: it failed before it was tried."""
        count = self._sources.get(source)
        if count is not None:
            _give_back(count, self._per_source)
            _give_back(self._all, self._all_sources)

    def counts(self) -> Counts:
        sources = tuple((source, _plain(count)) for source, count in self._sources.items())
        return Counts(_plain(self._all), sources)

    def resume(self, counts: Counts, now: float) -> None:
        """Goes on where a former life ended. No penalty is longer than its rule could make it now."""
        self._all = _sane(counts.all, self._all_sources, now)
        for source, count in counts.sources[-SOURCES_KEPT:]:
            self._sources[source] = _sane(count, self._per_source, now)


def _plain(count: _Count) -> tuple[int, float, float]:
    return count.charged, count.last_at, count.shut_until


def _sane(said: tuple[int, float, float], rule: Rule, now: float) -> _Count:
    charged, last_at, shut_until = said
    return _Count(max(0, charged), min(last_at, now), min(shut_until, now + rule.most_s))


def _charge(count: _Count, rule: Rule, now: float) -> None:
    if now - count.last_at > FORGET_S:
        count.charged = 0
    count.charged += 1
    count.last_at = now
    over = count.charged - rule.free
    if over >= 0:
        count.shut_until = now + min(rule.first_s * 2.0 ** min(over, 32), rule.most_s)


def _give_back(count: _Count, rule: Rule) -> None:
    count.charged = max(0, count.charged - 1)
    if count.charged < rule.free:
        count.shut_until = 0.0

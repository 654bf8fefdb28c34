"""Which endpoint is asked next: local first, then the one that works, never at once the one that has just failed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

_FIRST_PENALTY_S: Final = 0.5
_LONGEST_PENALTY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Penalty:
    failures: int  # in a row
    until: float


@dataclass(frozen=True, slots=True)
class Endpoints:
    """`order`: the local one first, then the peers'. `current`: the one that worked last; empty = none has yet."""

    order: tuple[str, ...]
    current: str = ""
    penalties: Mapping[str, Penalty] = field(default_factory=dict)

    def choose(self, now: float) -> str:
        """The current one, else the first without a penalty, else the one whose penalty ends first."""
        if self.current in self.order:
            return self.current
        free = [each for each in self.order if self._until(each) <= now]
        return free[0] if free else min(self.order, key=self._until)

    def failed(self, endpoint: str, now: float) -> Endpoints:
        """It was refused, silent, or of no use: the next one is asked, and it again only after a while."""
        if self._until(endpoint) > now:  # one of many calls that failed together
            return replace(self, current="") if endpoint == self.current else self
        failures = self.penalties[endpoint].failures + 1 if endpoint in self.penalties else 1
        until = now + min(_LONGEST_PENALTY_S, _FIRST_PENALTY_S * 2.0 ** min(failures - 1, 10))
        current = "" if endpoint == self.current else self.current
        return replace(self, current=current, penalties={**self.penalties, endpoint: Penalty(failures, until)})

    def worked(self, endpoint: str) -> Endpoints:
        if endpoint == self.current and endpoint not in self.penalties:
            return self
        penalties = {each: penalty for each, penalty in self.penalties.items() if each != endpoint}
        return replace(self, current=endpoint, penalties=penalties)

    def renewed(self, order: Sequence[str]) -> Endpoints:
        """The members have changed. What is known of those that stay is kept."""
        penalties = {each: penalty for each, penalty in self.penalties.items() if each in order}
        return Endpoints(tuple(order), self.current if self.current in order else "", penalties)

    def _until(self, endpoint: str) -> float:
        return self.penalties[endpoint].until if endpoint in self.penalties else 0.0

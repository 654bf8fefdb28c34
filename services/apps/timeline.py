"""When an app got how far in its term of now: for the history, which tells how long its clients waited for what."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from piccolod import clock
from services.apps.situation import Do

_STEPS: Final[Mapping[Do, str]] = MappingProxyType({Do.ATTACH: "attached", Do.START: "started"})


class Timeline:
    """Moments of CLOCK_BOOTTIME by phase. Of what was found running nothing is told: it began before this could see it."""

    def __init__(self) -> None:
        self._token = 0
        self._at: dict[str, float] = {}
        self._told = False

    def of(self, token: int) -> None:
        """The term that is looked at; another one begins anew. 0: none.

        The steps that follow a campaign are done at once, before its term is looked at: they are of that one.
        """
        if token == self._token:
            return
        if self._token:
            self._at, self._told = {}, False
        self._token = token

    def did(self, step: Do) -> None:
        """A start after another one counts: what comes before it is the way to that."""
        if step in _STEPS and not self._told:
            self._at[_STEPS[step]] = clock.now()

    def served(self, ready_at: float) -> Mapping[str, float] | None:
        """Clients reach it from now on. The moments, once in a term; None: they were told, or its start was not seen."""
        if self._told or not self._token:
            return None
        self._told = True
        if "started" not in self._at:
            return None
        return {**self._at, "ready": ready_at, "routed": clock.now()}

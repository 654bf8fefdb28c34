"""Connections that wait for a leader.

A held connection is accepted and then left alone: what its client sends stays in the kernel's receive buffer, which is
bounded, and goes to the container unchanged, from the first byte, when the hold is released. Nothing is copied, so a
thousand waiting clients cost a thousand descriptors and no memory of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from services.router.deadlines import Deadlines

Leg = TypeVar("Leg")

# A container that just started has a small backlog; a SYN that finds it full is lost for a second.
RELEASED_AT_ONCE: Final = 64


class Hold(Generic[Leg]):
    """The waiting connections of one listener, oldest first."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: Deadlines[Leg] = Deadlines()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, leg: Leg) -> bool:
        return leg in self._waiting

    def __iter__(self) -> Iterator[Leg]:
        return iter(self._waiting)

    def add(self, leg: Leg, give_up_at: float) -> None:
        self._waiting.add(leg, give_up_at)

    def leave(self, leg: Leg) -> None:
        """Its client went away."""
        self._waiting.discard(leg)

    def given_up(self, now: float) -> list[Leg]:
        """Who has waited for the listener's `hold` in vain."""
        return self._waiting.expired(now)

    def release(self) -> list[Leg]:
        """The next to go to the container; call again until it is empty."""
        return self._waiting.take(RELEASED_AT_ONCE)

    def dismiss(self) -> list[Leg]:
        """Everybody: there will be no leader."""
        return self._waiting.take(len(self._waiting))

"""The silence around a lock: from the wish to lock until the store is unlocked again, no led app runs. Pure."""

from __future__ import annotations

from typing import Final

# A lock follows at once, or its caller died: then the apps come back by themselves.
PATIENCE_S: Final = 30.0


class Quiet:
    def __init__(self) -> None:
        self._until_at = 0.0
        self._locked = False

    def begin(self, now: float, *, locked: bool) -> None:
        self._until_at, self._locked = now + PATIENCE_S, locked

    def lock_is(self, locked: bool, now: float) -> None:
        """What is heard of the lock: an unlock ends the silence, but only one that comes after a lock."""
        if locked:
            self._locked = self.holds(now)
        elif self._locked:
            self._until_at, self._locked = 0.0, False

    def holds(self, now: float) -> bool:
        return self._locked or now < self._until_at

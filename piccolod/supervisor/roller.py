"""Keeps flagged modules at the verified rev: the thin shell around `revision.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from piccolod import clock
from piccolod.kernel import ModuleSpec
from piccolod.supervisor import revision
from piccolod.supervisor.loop import Loop, Timer
from piccolod.supervisor.revision import Action, Pace


class Roller:
    def __init__(
        self,
        loop: Loop,
        table: Sequence[ModuleSpec],
        pace: Pace,
        *,
        alive: Callable[[], Iterable[str]],
        busy: Callable[[], Iterable[str]],
        act: Callable[[Action], None],
        stale: Callable[[str, int], None],
    ) -> None:
        """`alive` names the modules that are ready, `busy` those with work that a restart would cut.

        `stale(module, rev)` tells of one that could not be brought there.
        """
        self._loop = loop
        self._pace = pace
        self._alive = alive
        self._busy = busy
        self._act = act
        self._stale = stale
        self._state = revision.begin(table)
        self._timer: Timer | None = None

    def verified(self, rev: int, collections: Iterable[str], leader: bool) -> dict[str, int]:
        """Returns what counts as applied, by module."""
        self._state = revision.verified(self._state, rev, collections, leader, clock.now())
        self._step()
        return {name: follower.applied for name, follower in self._state.followers.items()}

    def ready(self, module: str, applied: int, reloads: bool) -> None:
        self._state = revision.ready(self._state, module, applied, reloads)
        self._step()

    def applied(self, module: str, rev: int) -> None:
        self._state = revision.applied(self._state, module, rev)
        self._step()

    def look(self) -> None:
        """Somebody is busy no more."""
        self._step()

    def _step(self) -> None:
        now = clock.now()
        before = revision.stale(self._state)
        self._state, actions = revision.step(self._state, self._alive(), self._busy(), now, self._pace)
        for action in actions:
            self._act(action)
        for name, rev in revision.stale(self._state).items():
            if name not in before:
                self._stale(name, rev)
        if self._timer is not None:
            self._timer.cancel()
        at = revision.next_at(self._state, now, self._pace)
        self._timer = None if at is None else self._loop.at(at, self._step)

"""Who is silent is lost in time, and nobody is blamed for a pause that the supervisor shared."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from piccolod import clock
from piccolod.config import Config
from piccolod.kernel import ModuleSpec
from piccolod.supervisor import restart
from piccolod.supervisor.loop import Loop
from piccolod.supervisor.patience import Patience
from piccolod.supervisor.row import Row, State

_MISSED_S = 0.1


class Watched:
    """A module that is ready and silent from now on, and the supervisor's loop."""

    def __init__(self) -> None:
        self.lost_at = 0.0
        now = clock.now()
        life: Any = SimpleNamespace(started_at=now, ready_at=now, heard_at=now, cause="", feel=lambda: None, abort=self._abort)
        self.life = life
        row = Row.of(ModuleSpec(name="m", target="m:m"), Config())
        row.missed_after_s, row.state, row.life = _MISSED_S, State.READY, life
        self.loop = Loop(lambda error: self._fail(error))
        parts: Any = SimpleNamespace(loop=self.loop, say=lambda *_, **__: None)
        roster: Any = SimpleNamespace(rows={"m": row}, set=lambda *_: None)
        Patience(parts, roster, restart.Policy()).check()

    def turn_for(self, seconds: float) -> None:
        until = clock.now() + seconds
        while clock.now() < until and not self.lost_at:
            self.loop.turn(0.005)

    def _abort(self, cause: str) -> None:
        self.life.cause, self.lost_at = cause, clock.now()

    def _fail(self, error: BaseException) -> None:
        raise error


def test_a_silent_module_is_lost_when_its_time_is_over() -> None:
    watched = Watched()
    watched.turn_for(2.0)
    assert _MISSED_S <= watched.lost_at - watched.life.heard_at < _MISSED_S + 0.08


def test_a_supervisor_that_looks_late_gives_the_module_a_moment_to_beat() -> None:
    watched = Watched()
    time.sleep(_MISSED_S + 0.05)  # the machine was paused
    watched.loop.turn(0.0)
    assert not watched.lost_at
    watched.life.heard_at = clock.now()  # it beats
    watched.turn_for(_MISSED_S * 0.9)
    assert not watched.lost_at
    watched.turn_for(2.0)
    assert watched.lost_at, "and then it is silent in earnest"

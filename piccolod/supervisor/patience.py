"""How long a module may be silent, get ready or grow before its process is ended."""

from __future__ import annotations

from typing import Final

from piccolod import clock
from piccolod.supervisor import restart
from piccolod.supervisor.loop import Timer
from piccolod.supervisor.parts import Parts
from piccolod.supervisor.roster import Roster
from piccolod.supervisor.row import Row, State, rss_bytes
from piccolod.units import format_size

_MEMORY_S: Final = 10.0
# Who looks late may have been paused together with the module, which then beats in a moment.
_LATE_S: Final = 0.02
_MOMENT_S: Final = 0.1
_LONG_S: Final = 5.0  # not ready for so long is a fault that health names


class Patience:
    def __init__(self, parts: Parts, roster: Roster, policy: restart.Policy) -> None:
        self._parts = parts
        self._roster = roster
        self._policy = policy
        self._timer: Timer | None = None

    def start(self) -> None:
        self._parts.loop.after(_MEMORY_S, self._check_memory)

    def check(self) -> None:
        """Who is silent, who does not get ready; then sleeps until the next one could be."""
        now = clock.now()
        is_late = self._timer is not None and now - self._timer.at > _LATE_S
        soonest = now + 1.0
        for row in self._roster.rows.values():
            if row.life is not None:
                row.life.feel()
            until = _until(row)
            if until <= now and is_late and row.life is not None and row.life.ready_at:
                row.life.heard_at += now - until + _MOMENT_S
                soonest = min(soonest, now + _MOMENT_S)
            elif until <= now:
                self._lose(row, now)
            else:
                soonest = min(soonest, until)
            if row.life is not None and row.life.ready_at:
                row.history = restart.while_ready(row.history, self._policy, now - row.life.ready_at)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._parts.loop.at(max(soonest, now + 0.02), self.check)

    def forgive(self, stalled_s: float) -> None:
        """We were late ourselves: nobody is blamed for the silence."""
        now = clock.now()
        for row in self._roster.rows.values():
            if row.life is not None:
                row.life.heard_at = now
                row.start_until += stalled_s

    def _lose(self, row: Row, now: float) -> None:
        life = row.life
        assert life is not None
        if life.ready_at:
            cause = f"hung: no beat for {now - life.heard_at:.1f} s"
            self._roster.set(row, State.HUNG, cause)
        else:
            cause = f"not ready within {now - life.started_at:.0f} s" + (f": {row.reason}" if row.reason else "")
        self._parts.say("warning", "lost patience", module=row.spec.name, reason=cause)
        life.abort(cause)

    def _check_memory(self) -> None:
        """Where the host has no memory cgroup for us the limit is watched here."""
        for row in self._roster.rows.values():
            life = row.life
            if life is None:
                continue
            if life.ready_at and not self._parts.cgroups.limits_memory:
                used = rss_bytes(life.pid)
                if used > row.memory_max_bytes:
                    life.kill(f"it uses {format_size(used)}, its limit is {format_size(row.memory_max_bytes)}")
            if row.state in (State.WAITING, State.STARTING) and clock.now() - life.asked_at > _LONG_S:
                self._parts.voice.health(row.spec.name, "ERROR", row.reason or "it does not get ready")
        self._parts.loop.after(_MEMORY_S, self._check_memory)


def _until(row: Row) -> float:
    life = row.life
    if life is None or not life.started_at or life.cause:
        return clock.FOREVER
    return life.heard_at + row.missed_after_s if life.ready_at else row.start_until

"""The end of all modules: layer by layer, nobody before those who need it, within a time for all of them together.

In a full stop `apps` ends its containers first, while the rest of the tree works on: an `apps` that is dead, frozen or on its
way up at this moment is waited for, and its next life is told. What then is left of containers is ended by others, before
the modules are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final

from piccolod import clock
from piccolod.kernel import ModuleSpec
from piccolod.supervisor import restart
from piccolod.supervisor.child import Life
from piccolod.supervisor.parts import Parts
from piccolod.supervisor.reaper import Ending
from piccolod.supervisor.roster import Roster
from piccolod.supervisor.row import Row, State

APPS: Final = "apps"
_SHORTEST_S: Final = 0.05
_AT_ONCE_S: Final = 1.0
_MARGIN_S: Final = 0.3  # it is told a little less than it has, so that its last act is an orderly end
# For an `apps` that cannot be told: a frozen one is found and replaced in 1.5 s, a dead one in 0.02 s.
_BACK_S: Final = 5.0


class Phase(StrEnum):
    RUNNING = "running"
    APPS = "apps"  # it ends its containers
    CONTAINERS = "containers"  # those that it could not end are killed
    MODULES = "modules"


class Stopping:
    def __init__(self, parts: Parts, table: Sequence[ModuleSpec], roster: Roster) -> None:
        self._parts = parts
        self._table = table
        self._roster = roster
        self._phase = Phase.RUNNING
        self._full = False
        self._layers: list[list[str]] = []
        self._within_s = self._until = 0.0
        self._told: Life | None = None  # of `apps`
        self._back_at = self._apps_until = 0.0
        self._end_containers: Callable[[Callable[[], None]], None] = lambda ended: ended()
        self._stopped: Callable[[], None] = lambda: None

    @property
    def asked(self) -> bool:
        return self._phase is not Phase.RUNNING

    @property
    def begun(self) -> bool:
        """Nobody is started any more."""
        return self._phase in (Phase.CONTAINERS, Phase.MODULES)

    def begin(
        self,
        within_s: float,
        stop_apps_s: float,
        end_containers: Callable[[Callable[[], None]], None],
        stopped: Callable[[], None],
    ) -> None:
        """Ends all within `within_s`, then calls `stopped`.

        `stop_apps_s` > 0: `apps` ends its containers before, within this time; then `end_containers(ended)` those left.
        """
        self._full, self._within_s = stop_apps_s > 0, within_s
        self._end_containers, self._stopped = end_containers, stopped
        apps = self._roster.rows.get(APPS)
        if not self._full:
            self._end_modules()
        elif apps is None or apps.state is State.DISABLED:
            self._phase = Phase.CONTAINERS
            self._end_containers(self._end_modules)
        else:
            self._phase, self._apps_until = Phase.APPS, clock.now() + stop_apps_s
            if not apps.ready:
                self._parts.say("warning", "waiting for apps to end its containers", state=apps.state, reason=apps.reason)
            self._expect_apps()
            self.look()

    def look(self) -> None:
        """After each change: `apps` may be there to be told; a layer may be gone, and the next one's turn have come."""
        if self._phase is Phase.APPS:
            self._tell_apps(self._roster.rows[APPS])
        elif self._phase is Phase.MODULES:
            self._next_layer()

    def is_last(self, row: Row, life: Life, ending: Ending) -> bool:
        """Whether nobody follows the life that has ended: all ends, or `apps` has done what it was told."""
        if self._phase is not Phase.APPS or row.spec.name != APPS:
            return self.begun
        is_done = life is self._told and not ending.code and not ending.signal
        if is_done or clock.now() >= self._apps_until:
            self._phase = Phase.CONTAINERS
            self._parts.loop.after(0.0, lambda: self._end_containers(self._end_modules))
            return True
        self._parts.say("warning", "waiting for apps to end its containers", state=row.state, reason=str(ending))
        self._expect_apps()
        return False

    def kill_all(self) -> None:
        if self._phase is Phase.MODULES:
            for row in self._roster.rows.values():
                if row.life is not None:
                    row.life.kill("stopped at once")
            return
        self._within_s, self._apps_until = min(self._within_s, _AT_ONCE_S), clock.now()
        self.look()

    # --- containers

    def _expect_apps(self) -> None:
        """It is there now, or has some time to come back."""
        self._back_at = min(self._apps_until, clock.now() + _BACK_S)
        self._parts.loop.at(self._back_at, self.look)

    def _tell_apps(self, row: Row) -> None:
        now, life = clock.now(), row.life
        if life is not None and life is self._told and now < self._apps_until:
            return
        if row.ready and life is not None and not life.cause and now < self._apps_until:
            # Not Life.stop: one that hangs over it must be missed, as at any other time.
            self._told = life
            life.send({"t": "STOP", "seconds": max(0.1, self._apps_until - now - _MARGIN_S), "apps": True})
            self._roster.set(row, State.STOPPING, "")
            self._parts.loop.at(self._apps_until, self.look)
        elif now >= min(self._back_at, self._apps_until):
            self._parts.say("error", "apps cannot end its containers", state=row.state, reason=row.reason)
            self._apps_until = now
            row.cancel_retry()
            if life is not None:
                life.kill("stopped before its containers had ended")  # its end leads on
            else:
                self._phase = Phase.CONTAINERS
                self._end_containers(self._end_modules)

    # --- modules

    def _end_modules(self) -> None:
        self._phase = Phase.MODULES
        for row in self._roster.rows.values():
            row.cancel_retry()
            row.again = False
            if row.life is not None and not row.life.started_at:
                row.life.kill("stopped before it started")
        self._until = clock.now() + self._within_s
        self._layers = restart.stop_layers(self._table, self._roster.alive())
        self._stop_layer()
        self._next_layer()

    def _next_layer(self) -> None:
        while self._layers and all(self._roster.rows[name].life is None for name in self._layers[0]):
            self._layers.pop(0)
            if self._layers:
                self._stop_layer()
        if not self._layers and not self._roster.alive():
            stopped, self._stopped = self._stopped, lambda: None
            stopped()

    def _stop_layer(self) -> None:
        # What one layer does not use is the next one's.
        share_s = max(_SHORTEST_S, (self._until - clock.now()) / max(1, len(self._layers)))
        for name in self._layers[0] if self._layers else ():
            row = self._roster.rows[name]
            if row.life is not None:
                self._roster.set(row, State.STOPPING, "")
                row.life.stop(share_s, "stopped", {"apps": self._full, "all": True})

"""The end of all modules: layer by layer, nobody before those who need it, within a time for all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from piccolod import clock
from piccolod.kernel import ModuleSpec
from piccolod.supervisor import restart
from piccolod.supervisor.roster import Roster
from piccolod.supervisor.row import State

APPS: Final = "apps"
_SHORTEST_S: Final = 0.05


class Stopping:
    def __init__(self, table: Sequence[ModuleSpec], roster: Roster) -> None:
        self._table = table
        self._roster = roster
        self._layers: list[list[str]] | None = None
        self._until = 0.0
        self._stopped: Callable[[], None] = lambda: None

    @property
    def begun(self) -> bool:
        return self._layers is not None

    def begin(self, within_s: float, stop_apps_s: float, stopped: Callable[[], None]) -> None:
        """Ends all within `within_s`, then calls `stopped`. `stop_apps_s` > 0: `apps` ends its containers first."""
        self._stopped = stopped
        rows = self._roster.rows
        for row in rows.values():
            row.cancel_retry()
            row.again = False
            if row.life is not None and not row.life.started_at:
                row.life.kill("stopped before it started")
        alive = self._roster.alive()
        apps = rows.get(APPS)
        self._until = clock.now() + within_s + (stop_apps_s if apps else 0.0)
        self._layers = restart.stop_layers(self._table, alive)
        if stop_apps_s and apps is not None and apps.ready and apps.life is not None:
            self._layers = [[APPS], *restart.stop_layers(self._table, [name for name in alive if name != APPS])]
            self._roster.set(apps, State.STOPPING, "")
            apps.life.stop(stop_apps_s, "stopped", {"apps": True})
        else:
            self._stop_layer()
        self.look()

    def look(self) -> None:
        """After each end: goes on to the next layer once this one is gone."""
        assert self._layers is not None
        rows = self._roster.rows
        while self._layers and all(rows[name].life is None for name in self._layers[0]):
            self._layers.pop(0)
            if self._layers:
                self._stop_layer()
        if not self._layers and not self._roster.alive():
            stopped, self._stopped = self._stopped, lambda: None
            stopped()

    def kill_all(self) -> None:
        for row in self._roster.rows.values():
            if row.life is not None:
                row.life.kill("stopped at once")

    def _stop_layer(self) -> None:
        assert self._layers is not None
        # What one layer does not use is the next one's.
        share_s = max(_SHORTEST_S, (self._until - clock.now()) / max(1, len(self._layers)))
        for name in self._layers[0] if self._layers else ():
            row = self._roster.rows[name]
            if row.life is not None:
                self._roster.set(row, State.STOPPING, "")
                row.life.stop(share_s, "stopped")

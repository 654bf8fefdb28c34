"""Every row of the table with its state, and those who are told about it: people, the bus, the modules themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from piccolod.config import Config
from piccolod.errors import NotFound
from piccolod.kernel import ModuleSpec
from piccolod.supervisor.child import Life
from piccolod.supervisor.row import Row, State
from piccolod.supervisor.voice import Voice


class Roster:
    def __init__(self, table: Sequence[ModuleSpec], config: Config, voice: Voice, on_change: Callable[[], None]) -> None:
        """`on_change` is called after each change of a row's state."""
        self.rows = {spec.name: Row.of(spec, config) for spec in table}
        self._voice = voice
        self._on_change = on_change

    # --- asking

    def named(self, name: str) -> Row:
        """Raises NotFound."""
        row = self.rows.get(name)
        if row is None:
            raise NotFound(f"there is no module {name!r}", hint="`piccoloctl modules list` shows them")
        return row

    def of(self, life: Life) -> Row | None:
        """The row that `life` is the present life of."""
        return next((row for row in self.rows.values() if row.life is life), None)

    def ready(self) -> set[str]:
        return {name for name, row in self.rows.items() if row.ready}

    def busy(self) -> set[str]:
        return {name for name, row in self.rows.items() if row.busy}

    def all_ready(self, names: Collection[str]) -> bool:
        """Whether those of `names` that are in the table are ready."""
        return all(row.ready for name, row in self.rows.items() if name in names)

    def alive(self) -> list[str]:
        """Who has a process, or one on its way."""
        return [name for name, row in self.rows.items() if row.life is not None]

    def pid_of(self, name: str) -> int:
        row = self.rows.get(name)
        return row.life.pid if row is not None and row.life is not None else 0

    def documents(self, now: float) -> list[dict[str, Any]]:
        return [row.document(now) for row in self.rows.values()]

    # --- telling

    def set(self, row: Row, state: State, reason: str) -> None:
        if (row.state, row.reason) == (state, reason) and state is not State.STARTING:
            return
        row.state, row.reason = state, reason
        self.publish(row)
        self._on_change()

    def publish(self, row: Row) -> None:
        self._voice.module(row.event())

    def peers(self) -> dict[str, list[object]]:
        """Who is who now: pid and instance of each module that has a process."""
        return {name: [row.life.pid, row.life.inst] for name, row in self.rows.items() if row.life is not None and row.life.pid}

    def tell_peers(self) -> None:
        message = {"t": "PEERS", "peers": self.peers()}
        for row in self.rows.values():
            if row.life is not None and row.life.started_at and not row.life.ended:
                row.life.send(message)

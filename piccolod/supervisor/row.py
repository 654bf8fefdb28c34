"""One row of the table while it lives: its state over all the lives of its process."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from piccolod.config import Config
from piccolod.kernel import ModuleSpec
from piccolod.supervisor.child import Life
from piccolod.supervisor.loop import Timer
from piccolod.supervisor.restart import History
from piccolod.units import parse_size

_MISSES: Final = 4
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class State(StrEnum):
    DISABLED = "disabled"
    WAITING = "waiting"  # for what it needs
    STARTING = "starting"
    READY = "ready"
    HUNG = "hung"
    STOPPING = "stopping"
    RESTARTING = "restarting"
    CRASHLOOPING = "crashlooping"
    STOPPED = "stopped"
    ABSENT = "absent"  # of a program that is not installed


@dataclass(slots=True)
class Row:
    spec: ModuleSpec
    missed_after_s: float
    memory_max_bytes: int
    state: State = State.WAITING
    reason: str = ""
    life: Life | None = None
    history: History = field(default_factory=History)
    restarts: int = 0
    retry: Timer | None = None
    again: bool = False  # its end was planned: start it at once
    start_until: float = 0.0
    level: str = "OK"  # its own judgement, by STATUS
    words: str = ""
    applied_rev: int = 0
    busy: bool = False  # by BUSY
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: ModuleSpec, config: Config) -> Row:
        chosen = config.module(spec.name)
        return cls(
            spec=spec,
            missed_after_s=_MISSES * (chosen.heartbeat_ms or spec.heartbeat_ms) / 1000,
            memory_max_bytes=parse_size(chosen.memory_max or spec.memory_max),
            state=State.WAITING if chosen.enabled else State.DISABLED,
            reason="" if chosen.enabled else "disabled in the configuration",
        )

    @property
    def ready(self) -> bool:
        return self.state is State.READY

    def cancel_retry(self) -> None:
        if self.retry is not None:
            self.retry.cancel()
        self.retry = None

    def document(self, now: float) -> dict[str, Any]:
        """As `modules` shows it."""
        life = self.life
        return {
            "name": self.spec.name,
            "pid": life.pid if life else 0,
            "instance": life.inst if life else "",
            "state": self.state.value,
            "reason": self.reason or self.words,
            "restarts": self.restarts,
            "uptime_s": round(now - life.ready_at, 3) if life and life.ready_at else 0.0,
            "rss_bytes": rss_bytes(life.pid) if life and life.pid else 0,
            "applied_rev": self.applied_rev,
            "restart_on_kernel_rev_change": self.spec.restart_on_kernel_rev_change,
            "level": self.level,
            "lag_ms": life.pulse.lag_ms() if life else 0.0,
            "warnings": list(self.warnings),
        }

    def event(self) -> dict[str, Any]:
        """The body of its ModuleStateChanged."""
        return {
            "module": self.spec.name,
            "state": self.state.value,
            "pid": self.life.pid if self.life else 0,
            "instance": self.life.inst if self.life else "",
            "restarts": self.restarts,
            "reason": self.reason,
        }


def rss_bytes(pid: int) -> int:
    """0 when there is no such process."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0

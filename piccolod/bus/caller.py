"""Who sent a command, as the supervisor's table and the kernel's socket credentials say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    module: str
    pid: int
    idem: str
    trace: str
    deadline_at: float

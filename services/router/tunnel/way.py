"""The clients of one port that wait for its leader, and when the leader is asked again. Pure.

A leader that did not serve is asked for one client at a time, after a pause that grows; when that one is served, all are.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from services.router.flow import Leg
    from services.router.route import Leader
    from services.router.tunnel.pool import Line

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 0.2


class Way:
    """`asking`: the clients for whom an answer is awaited, and where."""

    __slots__ = ("asking", "leader", "pause_s", "queue", "try_at")

    def __init__(self, leader: Leader | None) -> None:
        self.leader = leader
        self.queue: deque[Leg] = deque()
        self.asking: dict[Leg, Line] = {}
        self.pause_s = 0.0  # 0: the leader serves, as far as is known
        self.try_at = 0.0

    def may_ask(self, now: float) -> bool:
        if not self.pause_s:
            return True
        return now >= self.try_at and not self.asking

    def wants(self, now: float) -> int:
        """How many lines it could use."""
        return (min(1, len(self.queue)) if self.pause_s else len(self.queue)) if self.may_ask(now) else 0

    def served(self) -> None:
        self.pause_s = 0.0
        self.try_at = 0.0

    def refused(self, now: float) -> None:
        """The answers to several that were asked at once are one refusal."""
        if now < self.try_at:
            return
        self.pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, self.pause_s * 2))
        self.try_at = now + self.pause_s

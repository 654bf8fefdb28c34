"""When an app that failed is started again. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

FIRST_S: Final = 0.1
CEILING_S: Final = 30.0
HEALTHY_S: Final = 60.0
# apps.md: five failures in ten minutes are too many; on one node there is nobody to give the app to.
TOO_MANY: Final = 5
WITHIN_S: Final = 600.0
FAILED_S: Final = 60.0
BANNED_S: Final = 3600.0


class Failures(msgspec.Struct, frozen=True):
    """What is remembered of one app's failures on this node. `times` are CLOCK_BOOTTIME, newest last."""

    times: tuple[float, ...] = ()
    row: int = 0  # since it was last well for HEALTHY_S
    total: int = 0
    reason: str = ""

    def failed(self, now: float, reason: str) -> Failures:
        times = tuple(at for at in self.times if now - at < WITHIN_S)[-TOO_MANY:]
        return Failures((*times, now), self.row + 1, self.total + 1, reason)

    def well(self) -> Failures:
        """It ran well for HEALTHY_S: the next failure is a first one again."""
        return msgspec.structs.replace(self, row=0, times=(), reason="")

    @property
    def too_many(self) -> bool:
        return self.row > 0 and len(self.times) > TOO_MANY and self.times[-1] - self.times[-1 - TOO_MANY] < WITHIN_S

    def lately(self, now: float) -> int:
        return sum(now - at < WITHIN_S for at in self.times)

    def is_banned(self, now: float) -> bool:
        """Whether another node should lead it: for an hour after too many."""
        return self.too_many and now - self.times[-1] < BANNED_S

    @property
    def retry_at(self) -> float:
        """At once after the first failure, later after each further one in a row."""
        if self.row <= 1:
            return 0.0
        delay = FAILED_S if self.too_many else min(CEILING_S, FIRST_S * 2.0 ** (self.row - 2))
        return self.times[-1] + delay

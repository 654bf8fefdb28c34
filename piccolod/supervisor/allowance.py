"""How much of its time the supervisor spends on whoever asks it: a share in the long run, more in a burst."""

from __future__ import annotations


class Allowance:
    def __init__(self, share: float, burst_s: float, now: float) -> None:
        self._share = share
        self._burst_s = burst_s
        self._left_s = burst_s
        self._at = now

    def wait_s(self, now: float) -> float:
        """Seconds until more may be spent; 0: now."""
        self._left_s = min(self._burst_s, self._left_s + (now - self._at) * self._share)
        self._at = now
        return max(0.0, -self._left_s / self._share)

    def spend(self, seconds: float) -> None:
        self._left_s -= seconds

"""Virtual time: one heap of what happens when, and one source of chance."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

_SPINS = 2000  # so much at one moment is a loop without time


class World:
    """`now` is true time, which no node knows."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.chance = random.Random(seed)
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        self._count += 1
        heapq.heappush(self._heap, (when if when > self.now else self.now, self._count, what, args))

    def after(self, delay_s: float, what: Callable[..., None], *args: Any) -> None:
        self.at(self.now + delay_s, what, *args)

    def run(self, until: float) -> None:
        heap = self._heap
        at_once = 0
        while heap and heap[0][0] <= until:
            when, _, what, args = heapq.heappop(heap)
            at_once = at_once + 1 if when == self.now else 0
            assert at_once < _SPINS, f"seed {self.seed}: {what} spins at {when}"
            self.now = when
            what(*args)
        self.now = until

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.chance.random()

    def happens(self, probability: float) -> bool:
        return self.chance.random() < probability


class Clock:
    """CLOCK_BOOTTIME of one node: its own zero, its own rate. It may be stopped, as a hypervisor does."""

    def __init__(self, world: World, offset: float, rate: float) -> None:
        self._world = world
        self._offset = offset
        self._rate = rate

    def now(self) -> float:
        return self._offset + self._rate * self._world.now

    def true(self, local: float) -> float:
        """The true time at which this clock shows `local`."""
        return (local - self._offset) / self._rate

    def stood_still(self, for_s: float) -> None:
        self._offset -= self._rate * for_s

"""`gen`: which store of terms a pair (gen, epoch) is of. Each new store takes one above every other that this node ever had.

Milliseconds since 1970 and random bits below them, so that neither a lost disk nor another node brings the same gen again;
and above a floor that lies in a file of its own, so that a clock that was set back does not bring a lower one.
"""

from __future__ import annotations

import contextlib
import errno
import random
from pathlib import Path
from typing import Final

from piccolod import clock, durable
from piccolod.errors import StoreFull, StoreUnavailable

# 41 bits of milliseconds above them until the year 2039, and room for 2 more: below the 63 bits of SQLite's integers.
RANDOM_BITS: Final = 20
_MOST: Final = 2**63 - 1
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_random = random.SystemRandom()


def gen_above(floor: int, wall_ms: int, noise: int) -> int:
    """`noise`: RANDOM_BITS random bits."""
    return max(wall_ms << RANDOM_BITS, floor + 1) + noise


class GenFile:
    """The highest gen that was ever begun with."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def floor(self) -> int:
        """0 where there is no file, or none that says a gen."""
        try:
            text = self._path.read_bytes()[:32]
            found = int(text)
        except (OSError, ValueError):
            return 0
        return found if 0 < found <= _MOST else 0

    def next(self, least: int) -> int:
        """A gen above `least` and above the floor, which it becomes, on the disk. Raises StoreFull, StoreUnavailable."""
        gen = gen_above(max(least, self.floor()), clock.wall_ms(), _random.getrandbits(RANDOM_BITS))
        self._keep(gen)
        return gen

    def lift(self, gen: int) -> None:
        """The floor of a store that is in use already. Best effort: the store itself is there to say it again."""
        if gen > self.floor():
            with contextlib.suppress(StoreFull, StoreUnavailable):
                self._keep(gen)

    def _keep(self, gen: int) -> None:
        try:
            durable.replace(self._path, b"%d\n" % gen)
        except OSError as error:
            kind = StoreFull if error.errno in _FULL else StoreUnavailable
            raise kind(f"cannot write {self._path}: {error.strerror}", hint="see the disk") from error

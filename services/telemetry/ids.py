"""Ids that only grow, even when the journal is lost: blocks of them are reserved on disk before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from piccolod import clock, durable

_BLOCK: Final = 1000


class Reserved(msgspec.Struct, frozen=True):
    """Ids up to `up_to` may have been used in the boot `boot_id`."""

    up_to: int
    boot_id: str


class Ids:
    def __init__(self, file: Path, newest: int | None) -> None:
        """`newest` is the last id in the journal; None when that is not known any more.

        After a kill the journal has every id that was shown. After a power cut its end may be missing, and a lost journal
        has none: then the ids go on behind the reserved block.
        """
        self._file = file
        known = _read(file)
        self.last = newest or 0
        if known is not None and (newest is None or known.boot_id != clock.boot_id()):
            self.last = max(self.last, known.up_to)
        self._up_to = known.up_to if known is not None and known.boot_id == clock.boot_id() else 0

    def take(self, count: int) -> int:
        """The first of `count` ids. Raises OSError when they cannot be reserved; then none are taken."""
        if self.last + count > self._up_to:
            up_to = self.last + count + _BLOCK
            _write(self._file, Reserved(up_to, clock.boot_id()))
            self._up_to = up_to
        first = self.last + 1
        self.last += count
        return first

    def give_back(self, count: int) -> None:
        """The ids that were taken last were not used."""
        self.last -= count


def _read(file: Path) -> Reserved | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Reserved)
    except (OSError, msgspec.DecodeError):
        return None


def _write(file: Path, reserved: Reserved) -> None:
    durable.replace(file, msgspec.json.encode(reserved))

"""Whether the disk under the store still deserves the lead of the kernel. Pure: time comes as an argument.

One refused write is an answer to its writer. A disk that refuses everything for a while is a node that cannot lead: it
gives `kernel` away, and asks for it again when a probe, which is one whole entry, was taken.
"""

from __future__ import annotations

from typing import Final

import msgspec

# A disk that hiccups, or is full until a log is rotated, costs no term; people wait longer than this for a write anyway.
PATIENCE_S: Final = 5.0
LEAST_FAILURES: Final = 3


class Disk(msgspec.Struct, frozen=True):
    """Failures in a row, with nothing taken between them. `reason` is the last one's; empty while all is well."""

    failures: int = 0
    since_at: float = 0.0
    last_at: float = 0.0
    reason: str = ""

    @property
    def persists(self) -> bool:
        """Nothing was taken for PATIENCE_S though it was asked again and again."""
        return self.failures >= LEAST_FAILURES and self.last_at - self.since_at >= PATIENCE_S


WELL: Final = Disk()


def refused(disk: Disk, reason: str, now: float) -> Disk:
    return Disk(disk.failures + 1, disk.since_at if disk.failures else now, now, reason)

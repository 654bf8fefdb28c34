"""Time as piccolod counts it: CLOCK_BOOTTIME, which runs through suspend and never steps.

Deadlines are names ending in `_at` on this clock, in seconds as float. Wall clock (`wall_ms`) is for people only.
"""

from __future__ import annotations

import time

FOREVER = float("inf")


def now() -> float:
    """Seconds of CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_ms() -> int:
    """Milliseconds since 1970, for display and audit. Never for a decision."""
    return time.time_ns() // 1_000_000


def boot_id() -> str:
    """Names this boot of the kernel: what was alive under another id is certainly dead."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()

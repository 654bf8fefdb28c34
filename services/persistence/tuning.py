"""Parameters of Argon2id for this host: 0.3 to 0.5 s a guess, at most 256 MiB.

Measured once, when a password is set: memory first, since it is what hurts an attacker's hardware; passes after it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from services.persistence.keyset import SALT_BYTES, Kdf

MOST_KIB: Final = 256 * 1024
LEAST_KIB: Final = 19 * 1024  # OWASP's floor for two passes
AIM_S: Final = 0.4
LIMIT_S: Final = 0.5
LANES: Final = 2
MOST_ITERATIONS: Final = 64


def tune(measure: Callable[[Kdf], float] | None = None, available_kib: int | None = None) -> Kdf:
    """Takes about a second. `measure` gives the seconds of one derivation."""
    measure = measure or measure_s
    memory_kib = max(LEAST_KIB, min(MOST_KIB, (available_kib or available_memory_kib()) // 4))
    once_s = measure(Kdf(memory_kib, 1, LANES))
    # Two passes at least: one alone has known shortcuts.
    while 2 * once_s > LIMIT_S and memory_kib > LEAST_KIB:
        memory_kib = max(LEAST_KIB, memory_kib // 2)
        once_s = measure(Kdf(memory_kib, 1, LANES))
    iterations = max(2, min(MOST_ITERATIONS, round(AIM_S / once_s)))
    kdf = Kdf(memory_kib, iterations, LANES)
    # The first pass pays for fresh pages, so the estimate is high and the real time is what counts.
    took_s = measure(kdf)
    return Kdf(memory_kib, max(2, min(MOST_ITERATIONS, round(iterations * AIM_S / took_s))), LANES)


def measure_s(kdf: Kdf) -> float:
    started = time.perf_counter()
    Argon2id(
        salt=os.urandom(SALT_BYTES), length=32, iterations=kdf.iterations, lanes=kdf.lanes, memory_cost=kdf.memory_kib
    ).derive(b"measure")
    return time.perf_counter() - started


def available_memory_kib() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return LEAST_KIB * 4

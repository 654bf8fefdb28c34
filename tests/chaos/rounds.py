"""How often each fault comes, and which come in the long set alone."""

from __future__ import annotations

import os
import random
from typing import Any, Final

# 1 in `make test`, more in `make chaos`.
ROUNDS: Final = int(os.environ.get("PICCOLO_CHAOS_ROUNDS", "1"))
SEED: Final = int(os.environ.get("PICCOLO_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


def at_length(*cases: Any) -> tuple[Any, ...]:
    """Cases of the long set: none in `make test`."""
    return cases if ROUNDS > 1 else ()

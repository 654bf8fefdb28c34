"""A sample whose import takes as long as one from a slow disk: a fork of it waits for that."""

from __future__ import annotations

import time

from tests.unit.supervisor.samples import main

__all__ = ["main"]

time.sleep(1.0)

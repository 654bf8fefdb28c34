"""A module whose import starts a thread: it must not be forked."""

from __future__ import annotations

import threading
import time

from tests.unit.supervisor.samples import main

threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()

__all__ = ["main"]

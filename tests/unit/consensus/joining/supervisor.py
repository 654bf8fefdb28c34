"""The supervisor, as joining asks it: its modules by pid, and what it was told to restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piccolod import control
from piccolod.errors import Unavailable

MODULES = ("consensus", "persistence", "apps", "api")


class Supervisor:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.restarted: list[str] = []
        self.refuses = ""  # to restart this module
        self._pids = {name: number for number, name in enumerate(MODULES, 100)}
        patch.setattr(control, "ask", self._ask)

    async def _ask(self, socket: Path, request: dict[str, Any], timeout_s: float = 5.0) -> Any:
        if request["cmd"] == "modules":
            return [{"name": name, "pid": pid, "state": "ready", "reason": ""} for name, pid in self._pids.items()]
        if request["cmd"] == "restart":
            if request["name"] == self.refuses:
                raise Unavailable("the supervisor gave no answer")
            self.restarted.append(request["name"])
            self._pids[request["name"]] += 1000
        return None

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
        self.refuses = ""  # what is asked about this one
        self._pids = {name: number for number, name in enumerate(MODULES, 100)}
        patch.setattr(control, "ask", self._ask)

    async def _ask(self, socket: Path, request: dict[str, Any], timeout_s: float = 5.0) -> Any:
        if self.refuses in (request["cmd"], request.get("name")):
            raise Unavailable("the supervisor gave no answer")
        if request["cmd"] == "modules":
            return [{"name": name, "pid": pid, "state": "ready", "reason": ""} for name, pid in self._pids.items()]
        if request["cmd"] == "restart":
            self.restarted.append(request["name"])
            self._pids[request["name"]] += 1000
        return None

"""The last route of each app, kept for a restart of this worker: forwarding is back before anybody was asked.

One file an app in `run_dir/routes/<worker>/`, replaced whole. No fsync: a route only has to outlive the process, and
whoever reads it still asks the gate.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

from services.router.route import Route

_SUFFIX: Final = ".json"


class SavedRoutes:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self) -> tuple[list[Route], list[str]]:
        """(the routes, the names of files that are none). What cannot be read is removed: apps sends it again."""
        routes: list[Route] = []
        broken: list[str] = []
        for file in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                route = msgspec.json.decode(file.read_bytes(), type=Route)
                if file.stem != route.app:
                    raise ValueError(f"names app {route.app}")
            except (OSError, ValueError):
                broken.append(file.name)
                with contextlib.suppress(OSError):
                    file.unlink()
            else:
                routes.append(route)
        return routes, broken

    def keep(self, route: Route) -> None:
        """Raises OSError."""
        file = self._file(route.app)
        new = file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(route))
        os.replace(new, file)

    def drop(self, app: str) -> None:
        self._file(app).unlink(missing_ok=True)

    def _file(self, app: str) -> Path:
        return self._folder / f"{app}{_SUFFIX}"

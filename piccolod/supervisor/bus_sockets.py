"""The sockets of the bus: made here, so that only the supervisor creates names in that folder and a restart loses nobody."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

from piccolod.paths import Paths
from piccolod.supervisor.sockets import unix_listener

_MODE: Final = 0o660


class BusSockets:
    def __init__(self, paths: Paths, modules: Iterable[str], gid: int) -> None:
        """`gid` may connect, besides root; -1: nobody."""
        self._sockets: dict[str, dict[str, socket.socket]] = {}
        wanted = {}
        for module in modules:
            wanted[module] = {"command": paths.command_socket(module)}
            if module == "broker":
                wanted[module] |= {
                    "publish": paths.bus_publish,
                    "subscribe": paths.bus_subscribe,
                    "snapshot": paths.bus_snapshot,
                }
        for stale in set(paths.bus.iterdir()) - {path for each in wanted.values() for path in each.values()}:
            stale.unlink()
        for module, each in wanted.items():
            self._sockets[module] = {name: unix_listener(path, _MODE, gid) for name, path in each.items()}

    def of(self, module: str) -> dict[str, int]:
        """Descriptors by name; ours."""
        return {name: made.fileno() for name, made in self._sockets[module].items()}

    def close(self) -> None:
        for each in self._sockets.values():
            for made in each.values():
                made.close()

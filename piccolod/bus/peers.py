"""Which process is which module: told by the supervisor, never by the process itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Peers:
    """The latest table. `learn` is called by the owner of the link; `refresh` lets a reader fetch a table that is on its way.

    The supervisor sends PEERS to everybody before it sends START to the new process. So a message from an unknown pid
    means at most that our own PEERS is still in the socket: read that first, then judge.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, tuple[int, str]] = {}
        self._by_pid: dict[int, str] = {}
        self._listeners: list[Callable[[str], None]] = []
        self.refresh: Callable[[], None] = lambda: None

    def learn(self, peers: dict[str, Any]) -> None:
        before = self._by_name
        self._by_name = {name: (int(pid), str(inst)) for name, (pid, inst) in peers.items()}
        self._by_pid = {pid: name for name, (pid, _) in self._by_name.items()}
        for name in before.keys() | self._by_name.keys():
            if before.get(name) != self._by_name.get(name):
                for listener in self._listeners:
                    listener(name)

    def on_change(self, listener: Callable[[str], None]) -> None:
        """`listener(name)` after a module got another process, or lost its own."""
        self._listeners.append(listener)

    def instance(self, name: str) -> str:
        """The life of a module that is known now; empty when it is down."""
        return self._by_name.get(name, (0, ""))[1]

    def name_of(self, pid: int) -> str | None:
        name = self._by_pid.get(pid)
        if name is None:
            self.refresh()
            name = self._by_pid.get(pid)
        return name

    def sender(self, peer_address: str | bytes) -> tuple[str | None, int]:
        """(module, pid) behind libzmq's Peer-Address, which on ipc is `localhost:UID:GID:PID` by SO_PEERCRED."""
        text = peer_address.decode() if isinstance(peer_address, bytes) else peer_address
        try:
            pid = int(text.rpartition(":")[2])
        except ValueError:
            return None, 0
        return self.name_of(pid), pid

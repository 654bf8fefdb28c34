"""How the supervisor starts a leash and sees that it lives: never blocks, standard library only."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from piccolod.leadership import leash

LEASHES: Final = 2


def command(python: str, page: Path, table: Path, index: int) -> list[str]:
    """How to start leash `index`: in a session of its own, stderr a pipe (anything else is dropped).

    A second one of the same index ends at once with exit code 0.
    """
    return [python, "-IS", leash.__file__, str(page), str(table), str(index)]


class LeashProbe:
    """Asks a leash, again and again, whether it lives. A frozen one holds its lock and is silent."""

    def __init__(self, path: Path, now: float) -> None:
        self._path = path
        self._heard_at = now
        self._socket: socket.socket | None = None
        self._waiting = False

    def tick(self, now: float) -> float:
        """Takes the answers that have come, asks anew, and returns for how many seconds the leash has been silent."""
        if self._socket is None:
            self._connect()
        elif self._waiting:
            self._receive(now)
        if self._socket is not None and not self._waiting:
            try:
                self._waiting = self._socket.send(b"PING", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) > 0
            except BlockingIOError:
                pass
            except OSError:
                self.close()
        return now - self._heard_at

    def fileno(self) -> int:
        """For an event loop that wants the answer at once; -1 while there is no connection."""
        return -1 if self._socket is None else self._socket.fileno()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._waiting = None, False

    def _connect(self) -> None:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.setblocking(False)
        try:
            link.connect(str(self._path))
        except OSError:  # not there yet, dead, or frozen with a full queue
            link.close()
            return
        self._socket = link

    def _receive(self, now: float) -> None:
        assert self._socket is not None
        try:
            answer = self._socket.recv(64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            answer = b""
        if answer:
            self._heard_at, self._waiting = now, False
        else:
            self.close()

"""One question over HTTP to a program that listens on a unix socket, with a deadline; never blocks, reads the status alone."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from pathlib import Path

from piccolod.supervisor.loop import Loop, Timer


class Ping:
    def __init__(self, loop: Loop, path: Path, question: bytes, within_s: float, answered: Callable[[bytes], None]) -> None:
        """Calls `answered` once, in a later turn: with the status of the answer, empty when there was none in time."""
        self._loop = loop
        self._answered = answered
        self._socket: socket.socket | None = None
        self._timer: Timer | None = None
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._socket.connect(str(path))
            self._socket.send(question)
        except OSError:  # nobody listens, nobody accepts, or no descriptor is left
            self._timer = loop.after(0.0, lambda: self._end(b""))
            return
        made = self._socket
        loop.watch(made.fileno(), lambda _events: self._readable(made), select.EPOLLIN)
        self._timer = loop.after(within_s, lambda: self._end(b""))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _readable(self, made: socket.socket) -> None:
        try:
            answer = made.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            answer = b""
        words = answer.partition(b"\r\n")[0].split(b" ")
        self._end(words[1] if len(words) > 1 else b"")

    def _end(self, status: bytes) -> None:
        if self._socket is not None or self._timer is not None:
            self.close()
            self._timer = None
            self._answered(status)

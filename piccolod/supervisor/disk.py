"""The process that writes to disks, so that the supervisor never waits for one.

A program of its own, the log writer, started before the supervisor holds anything. The supervisor sends frames and drops
what does not fit; the log writer may hang in a write for as long as the disk likes. It ends when the supervisor does, after
writing what it was sent.

Frame: one byte `L` (append to a rotated log) or `R` (replace a file whole), the path, a NUL, the data.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from piccolod.supervisor import log_writer, rights
from piccolod.supervisor.loop import Loop
from piccolod.supervisor.reaper import Ending, Reaper
from piccolod.supervisor.spawner import environment

_QUEUE_BYTES: Final = 1 << 20
_AGAIN_S: Final = 1.0


class Disk:
    """The supervisor's end."""

    def __init__(self, loop: Loop, reaper: Reaper, say: Callable[..., None]) -> None:
        self._loop = loop
        self._reaper = reaper
        self._say = say
        self._socket: socket.socket | None = None
        self.pid = 0
        self.dropped = 0  # frames that did not fit, for ever
        self._closed = False

    def start(self) -> None:
        if self._closed:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        # The larger queue is a privilege; the ordinary one holds 200 KiB.
        with suppress(OSError):
            ours.setsockopt(socket.SOL_SOCKET, 32, _QUEUE_BYTES)  # SO_SNDBUFFORCE
        supervisor = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._say("error", "the log writer cannot be started", reason=str(error))
            self._loop.after(_AGAIN_S, self.start)
            return
        if pid == 0:
            _become(theirs, supervisor)
        theirs.close()
        self._socket, self.pid = ours, pid
        self._reaper.expect(pid, self._ended)

    def append(self, log: Path, data: bytes) -> bool:
        """False: dropped, because the disk is behind."""
        return self._send(b"L", log, data)

    def replace(self, file: Path, data: bytes) -> bool:
        return self._send(b"R", file, data)

    def close(self) -> None:
        """It writes what it has and ends."""
        self._closed = True
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _send(self, kind: bytes, path: Path, data: bytes) -> bool:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.send(kind + bytes(path) + b"\0" + data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                return True
        self.dropped += 1
        return False

    def _ended(self, ending: Ending) -> None:
        if self._closed:
            return
        self._say("warning", "the log writer has ended, making a new one", reason=str(ending))
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._loop.after(_AGAIN_S, self.start)


def _become(frames: socket.socket, supervisor: int) -> NoReturn:
    """What is ignored here, and the tie to the supervisor, outlive the change of the program."""
    try:
        signal.set_wakeup_fd(-1)
        rights.wake_with(supervisor)  # else one that is frozen would outlive it
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # it ends with the supervisor, after its last words
        fd = frames.detach()
        if fd == log_writer.FRAMES:
            os.set_inheritable(fd, True)
        else:
            os.dup2(fd, log_writer.FRAMES)
        os.set_blocking(log_writer.FRAMES, True)
        os.closerange(log_writer.FRAMES + 1, os.sysconf("SC_OPEN_MAX"))
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.setsid()
        os.execve(sys.executable, [sys.executable, "-IS", log_writer.__file__], environment())  # noqa: S606
    finally:
        os._exit(1)

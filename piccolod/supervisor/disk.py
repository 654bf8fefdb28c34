"""The process that writes to disks, so that the supervisor never waits for one.

Forked from the supervisor before it holds anything. The supervisor sends frames and drops what does not fit; this process
may hang in a write for as long as the disk likes. It ends when the supervisor does, after writing what it was sent.

Frame: one byte `L` (append to a rotated log) or `R` (replace a file whole), the path, a NUL, the data.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from piccolod.supervisor import rights
from piccolod.supervisor.loop import Loop
from piccolod.supervisor.reaper import Ending, Reaper

LOG_BYTES: Final = 2 * 2**20
LOG_FILES: Final = 4
_FRAME_BYTES: Final = 64 * 1024
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
    try:
        rights.wake_with(supervisor)  # else one that is frozen would outlive it
        fd = frames.detach()
        if fd != 3:
            os.dup2(fd, 3, inheritable=False)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # it ends with the supervisor, after its last words
        serve(socket.socket(fileno=3))
    finally:
        os._exit(0)


def serve(frames: socket.socket) -> None:
    frames.setblocking(True)
    logs: dict[str, RotatedLog] = {}
    # A frame is at most a chunk of a log, or the ledger.
    while frame := frames.recv(1 << 20):
        path, _, data = frame[1:].partition(b"\0")
        name = os.fsdecode(path)
        with suppress(OSError):
            if frame[:1] == b"L":
                logs.setdefault(name, RotatedLog(name)).write(data)
            else:
                _replace(name, data)


class RotatedLog:
    """`LOG_FILES` files of at most `LOG_BYTES` (and a chunk) each: name, name.1, ... A file that is removed is made anew."""

    def __init__(self, path: str, most_bytes: int = LOG_BYTES, files: int = LOG_FILES) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._files = files
        self._fd = -1

    def write(self, data: bytes) -> None:
        """Raises OSError; the next write tries afresh."""
        try:
            if self._fd < 0 or os.fstat(self._fd).st_nlink == 0:
                self._open()
            if os.lseek(self._fd, 0, os.SEEK_END) + len(data) > self._most_bytes:
                self._rotate()
            os.write(self._fd, data)
        except OSError:
            self._close()
            raise

    def _open(self) -> None:
        self._close()
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _rotate(self) -> None:
        for number in range(self._files - 1, 0, -1):
            older = self._path if number == 1 else f"{self._path}.{number - 1}"
            with suppress(FileNotFoundError):
                os.replace(older, f"{self._path}.{number}")
        self._open()


def _replace(name: str, data: bytes) -> None:
    draft = f"{name}.new"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.replace(draft, name)

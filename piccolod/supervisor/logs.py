"""What modules print: always read, so that nobody ever waits for a reader; kept in memory, and on disk when that keeps up."""

from __future__ import annotations

import fcntl
import os
import select
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from piccolod.supervisor.disk import Disk
from piccolod.supervisor.loop import Loop

LAST_LINES: Final = 50
_RING_BYTES: Final = 128 * 1024
_LINE_BYTES: Final = 4096
_READ_BYTES: Final = 32 * 1024
_ROUNDS: Final = 4  # of reading in a turn: one loud module must not keep the others waiting
_PIPE_BYTES: Final = 256 * 1024
_F_SETPIPE_SZ: Final = 1031


class Book:
    """One module's log, over all its lives."""

    def __init__(self, file: Path, disk: Disk) -> None:
        self._file = file
        self._disk = disk
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._part = b""
        self._lost = 0  # bytes that the disk did not take

    def load(self) -> None:
        """What was printed before this supervisor started, from the end of the file."""
        with suppress(OSError), open(self._file, "rb") as file:
            begin = max(0, os.fstat(file.fileno()).st_size - _RING_BYTES // 4)
            file.seek(begin)
            for line in file.read().splitlines()[int(begin > 0) :]:
                self._keep(line)

    def add(self, data: bytes) -> None:
        *lines, self._part = (self._part + data).split(b"\n")
        self._part = self._part[-_LINE_BYTES:]
        for line in lines:
            self._keep(line)
        if self._lost:
            note = b"... %d bytes of this log were lost: the disk was behind\n" % self._lost
            if not self._disk.append(self._file, note):
                self._lost += len(data)
                return
            self._lost = 0
        if not self._disk.append(self._file, data):
            self._lost += len(data)

    def last(self, count: int = LAST_LINES) -> list[str]:
        lines = list(self._lines)[-count:] if count > 0 else []
        return [line.decode(errors="replace") for line in lines]

    def _keep(self, line: bytes) -> None:
        line = line[:_LINE_BYTES]
        self._lines.append(line)
        self._bytes += len(line)
        while self._bytes > _RING_BYTES:
            self._bytes -= len(self._lines.popleft())


class LogPipe:
    """The reading end of one life's output. Open until its last writer is gone, which may be a child of the module."""

    def __init__(self, loop: Loop, book: Book, on_close: Callable[[LogPipe], None]) -> None:
        self._loop = loop
        self._book = book
        self._on_close = on_close
        self._fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._fd, False)
        with suppress(OSError):  # beyond the user's share of pipe memory: the ordinary 64 KiB do
            fcntl.fcntl(self._fd, _F_SETPIPE_SZ, _PIPE_BYTES)
        loop.watch(self._fd, self._readable, select.EPOLLIN)

    def close_write(self) -> None:
        """Once the process has its copy."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
        self.write_fd = -1

    def drain(self) -> None:
        """Reads what is there now."""
        self._readable(0)

    def close(self) -> None:
        self.close_write()
        if self._fd >= 0:
            self._loop.forget(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._on_close(self)

    def _readable(self, _events: int) -> None:
        for _ in range(_ROUNDS):
            if self._fd < 0:
                return
            try:
                data = os.read(self._fd, _READ_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            if not data:
                self.close()
                return
            self._book.add(data)

"""The program of the log writer (disk.py): writes what it is sent, as slowly as the disks like.

    python -IS log_writer.py

Frames come on descriptor 3. It imports nothing but `os`, which is there anyway: an interpreter of its own is smaller
than what it would keep of the supervisor's memory (measured: 2.9 MiB instead of 4.9).
"""

from __future__ import annotations

import os

FRAMES = 3
LOG_BYTES = 2 * 2**20
LOG_FILES = 4
# A frame is at most a chunk of a log, or the ledger.
_FRAME_BYTES = 1 << 20


def serve(frames: int) -> None:
    """Returns when the other end is closed and everything is written."""
    logs: dict[str, RotatedLog] = {}
    while frame := os.read(frames, _FRAME_BYTES):
        path, _, data = frame[1:].partition(b"\0")
        name = os.fsdecode(path)
        try:
            if frame[:1] == b"L":
                logs.setdefault(name, RotatedLog(name)).write(data)
            else:
                _replace(name, data)
        except OSError:
            continue  # lost; the next one may fit


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
            try:
                os.replace(older, f"{self._path}.{number}")
            except FileNotFoundError:
                continue
        self._open()


def _replace(name: str, data: bytes) -> None:
    draft = f"{name}.new"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.replace(draft, name)


if __name__ == "__main__":
    serve(FRAMES)

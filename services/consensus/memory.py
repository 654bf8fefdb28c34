"""`state_dir/cluster/seen.json`: which etcd this node knew, and how far it had come."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from piccolod.leadership.events import Memory


class MemoryFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Memory | None:
        """None where there is none, or none that can be read: then no session is resumed, and every etcd is new."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Memory)
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, memory: Memory) -> None:
        """Synced, file and folder, when this returns. Raises OSError, and then it is as it was."""
        draft = self._path.with_name(f"{self._path.name}.new")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, msgspec.json.encode(memory))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(draft, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

"""`state_dir/cluster/seen.json`: which etcd this node knew, and how far it had come."""

from __future__ import annotations

from pathlib import Path

import msgspec

from piccolod import durable
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
        """On the disk when this returns. Raises OSError."""
        durable.replace(self._path, msgspec.json.encode(memory))

"""The high-water mark: the last rev that was acknowledged, in a file beside the log.

SQLite takes a damaged end of its write-ahead log for the end of the log, so that a flipped bit there would silently lose
acknowledged writes. This mark is written after each commit, so the log can never honestly be behind it. It is not synced:
after a power loss it may be old, which proves nothing.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import Final

import msgspec

# crc32 of the rest, losses, rev, digest. One size for ever, so that a newer mark covers an older one whole.
_LAYOUT: Final = struct.Struct(">QQ32s")
_CRC_BYTES: Final = 4
_BYTES: Final = _CRC_BYTES + _LAYOUT.size


class Mark(msgspec.Struct, frozen=True, order=True):
    """`losses` as in the log's description: a mark of before a repair that lost revs says nothing about the log after it."""

    losses: int
    rev: int
    digest: bytes


class HeadFile:
    """Fails quietly: a mark that cannot be written or read protects less, and must not stop a commit that is durable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None

    def read(self) -> Mark | None:
        """None when there is no mark or it is not whole."""
        try:
            content = self._path.read_bytes()[:_BYTES]
        except OSError:
            return None
        body = content[_CRC_BYTES:]
        if len(body) != _LAYOUT.size or zlib.crc32(body).to_bytes(_CRC_BYTES, "big") != content[:_CRC_BYTES]:
            return None
        return Mark(*_LAYOUT.unpack(body))

    def write(self, mark: Mark) -> None:
        """Mapped, not written: a write would pull this file's inode into the journal commit of the next sync (12 us of 300)."""
        try:
            if self._map is None:
                self._map = _mapped(self._path)
            body = _LAYOUT.pack(mark.losses, mark.rev, mark.digest)
            self._map[:_BYTES] = zlib.crc32(body).to_bytes(_CRC_BYTES, "big") + body
        except (OSError, ValueError):
            self.close()

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None


def _mapped(path: Path) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Its block exists before it is mapped: a full disk must be an error here and not a SIGBUS later.
        os.posix_fallocate(fd, 0, mmap.PAGESIZE)
        return mmap.mmap(fd, mmap.PAGESIZE)
    finally:
        os.close(fd)

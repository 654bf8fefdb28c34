"""File systems in memory, for what must never touch a disk."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from piccolod.errors import Failed

# linux/mount.h
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MNT_DETACH: Final = 2
# linux/magic.h: tmpfs, ramfs
_IN_MEMORY: Final = frozenset({0x01021994, 0x858458F6})
_SOURCE: Final = b"piccolo"


def mount(folder: Path, size: str) -> None:
    """Mounts one for root alone, of at most `size` ("64m", "50%"). Raises Failed.

    Its pages are never swapped where the kernel can promise that (`noswap`, Linux 6.4); before, they may be.
    """
    options = f"size={size},mode=0700"
    libc = _libc()
    for text in (f"{options},noswap", options):
        if not libc.mount(_SOURCE, os.fsencode(folder), b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, text.encode()):
            return
    raise Failed(f"no memory file system at {folder}: {os.strerror(ctypes.get_errno())}", hint="piccolod needs to run as root")


def is_mounted(folder: Path) -> bool:
    """Whether one of ours, and not anything else, is mounted there."""
    real = _real(folder)
    return any(point == real and source == _SOURCE for point, source in _mounts())


def points_below(folder: Path) -> list[Path]:
    """What is mounted at the folder or below, of whatever kind, named from the folder as it was given."""
    real = _real(folder)
    return [folder / point.relative_to(real) for point, _ in _mounts() if point.is_relative_to(real)]


def is_in_memory(folder: Path) -> bool:
    """Whether what is written there stays in memory. Raises OSError."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs begins with its type, a long
    if _libc().statfs(os.fsencode(folder), buffer):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    return ctypes.c_long.from_buffer(buffer).value in _IN_MEMORY


def unmount(folder: Path, *, although_open: bool = False) -> bool:
    """False when it stays. `although_open`: it goes from the tree now, and from memory when its last file is closed."""
    return not _libc().umount2(os.fsencode(folder), _MNT_DETACH if although_open else 0)


def _mounts() -> list[tuple[Path, bytes]]:
    """(mount point, source) of each, in the order in which they came."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        head, _, tail = line.partition(b" - ")
        point = head.split()[4].decode("unicode_escape").encode("latin-1")  # a space is written \040
        found.append((Path(os.fsdecode(point)), tail.split()[1]))
    return found


def _real(folder: Path) -> Path:
    """As the kernel names it, which knows no links: /var/run leads to /run on most hosts."""
    return Path(os.path.realpath(folder))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)

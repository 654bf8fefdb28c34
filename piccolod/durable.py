"""Small files that are whole or as they were, whatever crashes, and on the disk when the call returns."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def replace(file: Path, content: bytes, *, mode: int = 0o600, group: int = -1) -> None:
    """Puts `content` in the place of `file`. The mode does not hang on the umask; -1: the group of this process.

    Raises OSError. When the sync of the folder is what failed, the new file may be there all the same.
    """
    draft = file.with_name(f"{file.name}.new")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchown(fd, -1, group)
            os.fchmod(fd, mode)
            left = memoryview(content)
            while left:  # a disk that fills up takes a part, and says so with the next
                left = left[os.write(fd, left) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(draft, file)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        raise
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Makes names in `folder` durable: those created, renamed and removed. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

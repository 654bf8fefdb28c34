"""Files that the api received for this module."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from piccolod.errors import Invalid


@contextmanager
def uploaded(file: Path, folder: Path) -> Iterator[Path]:
    """Another name of `file`, opened, when it is a plain file in `folder`: nobody makes this module, which is root, read
    something else, neither by a link nor by an exchange after the check."""
    try:
        if file.parent != folder:
            raise OSError
        within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fd = os.open(file.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=within)
        finally:
            os.close(within)
    except OSError:
        raise Invalid(f"{file} is not an uploaded file") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Invalid(f"{file} is not an uploaded file")
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)

"""Files that the api and this module hand to each other, in a folder of the api's."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from piccolod.errors import Invalid

KEEP_FREE_BYTES: Final = 64 * 2**20  # the store is on the same disk


@contextmanager
def uploaded(file: Path, folder: Path) -> Iterator[Path]:
    """Another name of `file`, opened, when it is a plain file in `folder`: nobody makes this module, which is root, read
    something else, neither by a link nor by an exchange after the check."""
    try:
        fd = _opened(file, folder, os.O_RDONLY)
    except OSError:
        raise Invalid(f"{file} is not an uploaded file") from None
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


class Archive:
    """A file of the api's that this module fills: opened where it is, never made, for the api may have given it up."""

    def __init__(self, file: Path, folder: Path) -> None:
        self._file, self._folder = file, folder
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Whoever fills it stops soon."""
        self._given_up.set()

    def fill(self, parts: Iterator[bytes]) -> OSError | None:
        """Blocking. What went wrong with the file; what is raised is of the parts."""
        try:
            fd = _opened(self._file, self._folder, os.O_WRONLY)
        except OSError as error:
            return error
        try:
            for part in parts:
                if self._given_up.is_set():
                    return OSError(errno.ECANCELED, "nobody waits for it any more")
                try:
                    self._write(fd, part)
                except OSError as error:
                    return error
        finally:
            os.close(fd)
        return None

    def _write(self, fd: int, part: bytes) -> None:
        if shutil.disk_usage(self._folder).free - len(part) < KEEP_FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view = memoryview(part)
        while view:
            view = view[os.write(fd, view) :]


def _opened(file: Path, folder: Path, flags: int) -> int:
    """A plain file in `folder`: neither a link nor anything else that blocks or is somewhere else. Raises OSError."""
    if file.parent != folder:
        raise OSError(errno.EINVAL, "it is not in the folder")
    within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fd = os.open(file.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=within)
    finally:
        os.close(within)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no plain file")
    return fd

"""Files that the api and this module hand to each other, in a folder of the api's."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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


@contextmanager
def handed(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file for the api, who owns the folder: it stays there where the block ends well, and nothing of it otherwise.

    Raises OSError.
    """
    within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    name = f"{secrets.token_hex(8)}.saved"
    try:
        owner = os.fstat(within)
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=within)
        with open(fd, "wb", buffering=0) as file:
            try:
                yield folder / name, file
                os.fchown(fd, owner.st_uid, owner.st_gid)
            except BaseException:
                os.unlink(name, dir_fd=within)
                raise
    finally:
        os.close(within)

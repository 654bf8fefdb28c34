"""The disk of a machine: an ext4 image behind a loop device, mounted in the machine alone.

Losing power is real here: what was not synced is gone, because the file system is shut down without writing its journal.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from tests.bed.network import run
from tests.node import until

# linux/fs.h, and fs/ext4/ext4.h: EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2
_BALLAST = "ballast"
_BLOCK_BYTES = 4096


class Disk:
    def __init__(self, image: Path, size_mib: int) -> None:
        """Made anew. The image is sparse: it takes the room that is written."""
        self.image = image
        with image.open("wb") as file:
            file.truncate(size_mib << 20)
        # -m 0: no blocks that only root may use, or a full disk would not be full for piccolod
        run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", str(image))

    def sync(self, mount: Path) -> None:
        """All that was written so far survives a loss of power, as it does after half a minute of rest."""
        run("sync", "--file-system", str(mount))

    def freeze(self, mount: Path) -> None:
        """Every write waits from now on; reads go on."""
        _control(mount, _FIFREEZE)

    @staticmethod
    def thaw(mount: Path) -> None:
        """Does nothing to a disk that is not frozen."""
        try:
            _control(mount, _FITHAW)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def lose_power(self, mount: Path) -> None:
        """Nothing is written from now on, and what waits for it fails."""
        _control(mount, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        self.thaw(mount)

    def fill(self, mount: Path, leave_bytes: int = 0) -> None:
        """Takes all that is free, but `leave_bytes` of it."""
        with (mount / _BALLAST).open("ab") as file:
            room = os.fstatvfs(file.fileno())
            size = max(0, room.f_bavail * room.f_frsize - leave_bytes)
            while size >= _BLOCK_BYTES:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2

    def empty(self, mount: Path) -> None:
        (mount / _BALLAST).unlink(missing_ok=True)

    def wait_released(self) -> None:
        """The last mount is gone, and with it the loop device."""
        until(lambda: not run("losetup", "--associated", str(self.image)), f"{self.image} is released")


def _control(mount: Path, number: int, argument: bytes = b"\0\0\0\0") -> None:
    folder = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(folder, number, argument)
    finally:
        os.close(folder)

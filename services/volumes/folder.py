"""A volume on the disk: one folder `<app>.<volume>` under the volumes of the node.

    volume.json      what the volume is; replacing it is the commit point of every change
    lock             held by the process that encrypts, and by whoever changes the folder
    <n>.tree         a folder that holds the ciphertext as `cipher`, or
    <n>.image        an ext4 image that does

`volume.json` names the body that counts. Another body is the rest of a change that did not finish, or has been replaced.
A folder whose name begins with a dot is half-made (`.new-`) or half-deleted (`.gone-`): never a volume.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from piccolod import durable
from piccolod.errors import Busy, Failed, NotFound, PiccoloError, StoreFull
from services.volumes.plan import Body, Shape, VolumeId

NEW = ".new-"
GONE = ".gone-"
CIPHER = "cipher"


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """volume.json. `limit_bytes` is what was wished, `built_bytes` what an image's file system was made for."""

    body: str
    number: int
    limit_bytes: int
    built_bytes: int = 0
    warning: str = ""

    @property
    def shape(self) -> Shape:
        return Shape(Body(self.body), self.limit_bytes, self.warning)

    @property
    def file(self) -> str:
        return f"{self.number}.{self.body}"


class Folder:
    def __init__(self, volumes: Path, volume: VolumeId) -> None:
        self.id = volume
        self.path = volumes / str(volume)
        self._volumes = volumes

    def exists(self) -> bool:
        return (self.path / "volume.json").exists()

    def describe(self) -> Description:
        """Raises NotFound; Failed when the description is damaged: the ciphertext is never guessed at."""
        try:
            return msgspec.json.decode((self.path / "volume.json").read_bytes(), type=Description)
        except FileNotFoundError:
            raise NotFound(f"there is no volume {self.id}") from None
        except msgspec.MsgspecError as error:
            raise Failed(f"{self.path / 'volume.json'} is damaged: {error}", hint="restore it from a backup") from error

    @property
    def body(self) -> Path:
        return self.path / self.describe().file

    def commit(self, description: Description, *, where: Path | None = None) -> None:
        """From here on the volume is what `description` says, also after a power failure."""
        durable.replace((where or self.path) / "volume.json", msgspec.json.encode(description))

    @contextmanager
    def locked(self, timeout_s: float = 5.0) -> Iterator[int]:
        """The right to touch the folder, as a descriptor: it lasts while any process has it open. Raises Busy."""
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + timeout_s
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise Busy(f"volume {self.id} is being changed or still in use", hint="try again") from None
                    time.sleep(0.02)  # flock has no deadline of its own
            yield fd
        finally:
            os.close(fd)

    def drop_rests(self) -> None:
        """Removes bodies that do not count. Only with the lock."""
        counts = self.describe().file
        for entry in self.path.iterdir():
            if entry.suffix in (".tree", ".image") and entry.name != counts:
                _remove(entry)

    @contextmanager
    def making(self) -> Iterator[Path]:
        """A folder to fill; it becomes the volume when the block ends, and vanishes when it fails."""
        new = self._volumes / f"{NEW}{self.id}.{os.getpid()}"
        _remove(new)
        new.mkdir(mode=0o700, parents=True)
        try:
            yield new
            durable.sync_folder(new)
            new.rename(self.path)
            durable.sync_folder(self._volumes)
        except OSError as error:
            _remove(new)
            raise no_room(error, f"volume {self.id} cannot be made") from error
        except BaseException:
            _remove(new)
            raise

    def set_aside(self) -> None:
        """The first step of a purge: from here on there is no such volume. The rest can be repeated."""
        gone = self.gone
        _remove(gone)
        self.path.rename(gone)
        durable.sync_folder(self._volumes)

    @property
    def gone(self) -> Path:
        return self._volumes / f"{GONE}{self.id}"

    def remove_gone(self) -> None:
        _remove(self.gone)


def no_room(error: OSError, what: str) -> PiccoloError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"{what}: the disk is full", hint="free space on the disk")
    return Failed(f"{what}: {error}")


def volumes_in(folder: Path) -> list[VolumeId]:
    if not folder.is_dir():
        return []
    found = (VolumeId.of_folder(entry.name) for entry in folder.iterdir() if (entry / "volume.json").exists())
    return sorted(volume for volume in found if volume is not None)


def gone_in(folder: Path) -> list[VolumeId]:
    """Volumes whose purge has begun and not ended."""
    if not folder.is_dir():
        return []
    found = (VolumeId.of_folder(entry.name.removeprefix(GONE)) for entry in folder.iterdir() if entry.name.startswith(GONE))
    return sorted(volume for volume in found if volume is not None)


def drop_half_made(folder: Path) -> None:
    """Removes what an earlier life was making: it never was a volume."""
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.name.startswith(NEW):
                _remove(entry)


def stored_bytes(path: Path) -> int:
    """What a file or a tree takes on the disk."""
    total = 0
    waiting = [path]
    while waiting:
        entry = waiting.pop()
        try:
            stat = entry.lstat()
            total += stat.st_blocks * 512
            if entry.is_dir() and not entry.is_symlink():
                waiting += entry.iterdir()
        except FileNotFoundError:  # the app deletes files while we count
            continue
    return total


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

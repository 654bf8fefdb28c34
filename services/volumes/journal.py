"""What is attached, written down in `run` so that the next life of this module adopts it.

One file a volume, written before the encrypting process gets its key: a process that has a key is always known. A pid
alone names nobody after a while; with its start time and the boot it does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from services.volumes.plan import VolumeId


class Record(msgspec.Struct, frozen=True, kw_only=True):
    app: str
    volume: str
    pid: int
    started: int  # clock ticks after boot, field 22 of /proc/<pid>/stat
    boot_id: str
    token: int  # of the term that attached it
    device: str = ""  # major:minor of the plain text's file system, once it was mounted

    @property
    def id(self) -> VolumeId:
        return VolumeId(self.app, self.volume)


class Journal:
    def __init__(self, folder: Path, boot_id: str) -> None:
        self._folder = folder
        self._boot_id = boot_id

    def read(self, volume: VolumeId) -> Record | None:
        """The record of this boot; None when there is none, or garbage, which proves nothing."""
        try:
            record = msgspec.json.decode(self._file(volume).read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError):
            return None
        return record if record.boot_id == self._boot_id and record.id == volume else None

    def write(self, record: Record) -> None:
        """Readers see the old record or the new one, never a part."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._file(record.id)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_bytes(msgspec.json.encode(record))
        new.replace(file)

    def forget(self, volume: VolumeId) -> None:
        self._file(volume).unlink(missing_ok=True)

    def records(self) -> Iterator[Record]:
        if not self._folder.is_dir():
            return
        for file in sorted(self._folder.glob("*.json")):
            volume = VolumeId.of_folder(file.stem)
            if volume is not None and (record := self.read(volume)) is not None:
                yield record

    def _file(self, volume: VolumeId) -> Path:
        return self._folder / f"{volume}.json"

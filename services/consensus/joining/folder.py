"""`state_dir/cluster`: what a member knows of its cluster beside the mode. Each file whole and synced, or as it was.

Nothing of it counts before `mode` is there (piccolod/cluster_mode.py): what a crash of `cluster init` or of a join left is
wiped by the next start.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from piccolod import clock, cluster_mode, durable, etcd_conf
from piccolod.errors import Invalid, StoreUnavailable
from piccolod.paths import Paths
from piccolod.protocol.cluster import KnownMember, Timing
from piccolod.supervisor.rundir import group_id
from services.consensus import members_file

# The key of the node's certificate is shared with modules that have users of their own, by the group that they are in.
_FOREIGN: Final = "store-given-up"
_PUBLIC, _SHARED = 0o644, 0o640

_DRAFT: Final = "draft.json"

T = TypeVar("T")


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster that this node is about to found in an etcd that is not wiped with the node. `mark`: of this attempt alone."""

    cluster: str
    mark: str


class Folder:
    def __init__(self, paths: Paths) -> None:
        self.paths: Final = paths
        self.path: Final = paths.cluster

    @property
    def ca(self) -> Path:
        return self.path / "ca.pem"

    @property
    def certificate(self) -> Path:
        return self.path / "node.pem"

    @property
    def key(self) -> Path:
        return self.path / "node.key"

    def make(self) -> None:
        """Empty and new. Raises OSError."""
        self.wipe()
        cluster_mode.make_folder(self.path)

    def keep_certificate(self, certificate: str, key: bytes, ca: str) -> None:
        """The key first: a certificate without its key is of no use to who reads them in between. Raises OSError."""
        self._write(self.key, key, _SHARED)
        self._write(self.ca, ca.encode(), _PUBLIC)
        self._write(self.certificate, certificate.encode(), _PUBLIC)

    def renew_certificate(self, certificate: str) -> None:
        """In the place of the former one, whose key it has. Raises OSError."""
        self._write(self.certificate, certificate.encode(), _PUBLIC)

    def keep_members(self, members: Mapping[str, KnownMember]) -> None:
        members_file.write(self.paths, members)

    def keep_timing(self, timing: Timing) -> None:
        self._write(self.path / "timing.json", msgspec.json.encode(timing), _PUBLIC)

    def timing(self) -> Timing:
        """Raises Invalid, StoreUnavailable."""
        return self._read("timing.json", Timing)

    def keep_draft(self, draft: Draft) -> None:
        """Before the first of it is written into an etcd that somebody else keeps. Raises OSError."""
        self._write(self._draft, msgspec.json.encode(draft), _PUBLIC)

    def draft(self) -> Draft | None:
        """Raises Invalid, StoreUnavailable."""
        return self._read(_DRAFT, Draft) if self._draft.exists() else None

    def drop_draft(self) -> None:
        """What it tells of is a cluster, or gone. Raises OSError."""
        self._draft.unlink(missing_ok=True)

    @property
    def _draft(self) -> Path:
        return self.path / _DRAFT

    def keep_etcd(self, settings: etcd_conf.Settings) -> None:
        etcd_conf.write(settings, self.paths.etcd_conf)

    def owe_restarts(self) -> None:
        """Before `mode` comes or goes: whoever started in the former mode has to start again, whatever crashes meanwhile.

        Raises OSError. A reboot forgives it, for then all start anew.
        """
        self._write(self.paths.restarts_due, b"", _PUBLIC)

    def owes_restarts(self) -> bool:
        return self.paths.restarts_due.exists()

    def restarts_done(self) -> None:
        self.paths.restarts_due.unlink(missing_ok=True)

    def give_store_up(self) -> None:
        """Once this node is a member, the store that it had alone is not its store any more. Raises OSError."""
        self._write(self.path / _FOREIGN, b"", _PUBLIC)

    def settle_store(self) -> bool:
        """Sets the store aside that was given up, which a crash may have left to be done. Whether it did. Raises OSError."""
        if not (self.path / _FOREIGN).exists():
            return _put_back(self.paths)  # a leave sets it aside as well
        set_store_aside(self.paths)
        (self.path / _FOREIGN).unlink()
        return True

    def drop_etcd(self) -> None:
        """From the next reload of the supervisor on no etcd runs here. Raises OSError."""
        self.paths.etcd_conf.unlink(missing_ok=True)

    def wipe(self) -> None:
        """All of it, and etcd's data. `mode` goes first: without it the rest counts for nothing. Raises OSError.

        etcd must have ended before, or its data comes back.
        """
        with contextlib.suppress(FileNotFoundError):
            cluster_mode.leave(self.path)
        for folder in (self.paths.etcd_data, self.path):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)

    def is_left_over(self) -> bool:
        """Whether a crash left something of a cluster that this node is no member of."""
        return cluster_mode.load(self.path) is None and (self.path.exists() or self.paths.etcd_data.exists())

    def _read(self, name: str, kind: type[T]) -> T:
        file = self.path / name
        try:
            return msgspec.json.decode(file.read_bytes(), type=kind)
        except OSError as error:
            raise StoreUnavailable(f"{file}: {error.strerror}", hint="join this node again") from error
        except msgspec.MsgspecError as error:
            raise Invalid(f"{file} is damaged: {error}", hint="join this node again") from error

    def _write(self, file: Path, content: bytes, mode: int) -> None:
        durable.replace(file, content, mode=mode, group=group_id() if mode == _SHARED else -1)


def set_store_aside(paths: Paths) -> None:
    """Deletes nothing: the folder gets another name, and an empty one with the same owner its place. Raises OSError.

    Done again after a crash at any step it goes on: there is always a folder, or a whole new one for its place.
    """
    if _put_back(paths) or not any(paths.store.glob("*")):
        return
    new, was = _new_store(paths), paths.store.stat()
    with contextlib.suppress(FileNotFoundError):
        new.rmdir()
    new.mkdir(mode=0o700)
    os.chown(new, was.st_uid, was.st_gid)
    paths.store.rename(paths.store.with_name(f"{paths.store.name}.before-{clock.wall_ms()}"))
    _put_back(paths)


def _put_back(paths: Paths) -> bool:
    """Whether the new folder had to take its place."""
    new = _new_store(paths)
    if paths.store.exists() or not new.exists():
        return False
    new.rename(paths.store)
    durable.sync_folder(paths.store.parent)
    return True


def _new_store(paths: Paths) -> Path:
    return paths.store.with_name(f"{paths.store.name}.new")

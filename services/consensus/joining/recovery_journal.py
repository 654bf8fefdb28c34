"""`state_dir/cluster/recovery.json`: how far a recovery has come. What a crash left is put back by it, or brought to its end.

    moving   nothing counts yet: the start of consensus puts the former etcd back, whose data lies aside
    begun    it counts, by the rename that made this the stage: what this node knows of its cluster follows
    settled  the nodes that are no members any more are still on the control store's list

The former data of etcd stays aside for ever: piccolod deletes none of it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any, Final

import msgspec

from piccolod import durable
from piccolod.errors import Invalid, StoreUnavailable
from piccolod.leadership.events import Memory
from piccolod.paths import Paths
from piccolod.protocol.cluster import KnownMember
from services.consensus import members_file
from services.consensus.joining.folder import Folder
from services.consensus.joining.supervised import Supervised
from services.consensus.memory import MemoryFile

_HINT: Final = "see the file; a copy of state_dir first"


class Stage(StrEnum):
    MOVING = "moving"
    BEGUN = "begun"
    SETTLED = "settled"


class Journal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`aside`: the name that the former data of etcd has beside the new one's. `etcd`: the text of the former `etcd.json`.

    `former`: who is to be forgotten, and `owed` who still is for an earlier recovery. `members` and `memory`: what takes the
    place of `members.json` and `seen.json` once it counts.
    """

    stage: Stage
    aside: str
    etcd: str
    former: tuple[str, ...]
    owed: tuple[str, ...] = ()
    members: Mapping[str, KnownMember] = {}
    memory: Memory | None = None


class JournalFile:
    def __init__(self, paths: Paths) -> None:
        self._file = paths.cluster / "recovery.json"

    def read(self) -> Journal | None:
        """None: no recovery is to be ended. Raises Invalid, StoreUnavailable."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Journal)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnavailable(f"{self._file}: {error.strerror}", hint="see the disk") from error
        except msgspec.MsgspecError as error:
            raise Invalid(f"{self._file} is damaged: {error}", hint=_HINT) from error

    def write(self, journal: Journal) -> None:
        """On the disk when this returns. Raises OSError; then `read` tells which one is there."""
        durable.replace(self._file, msgspec.json.encode(journal))

    def remove(self) -> None:
        self._file.unlink(missing_ok=True)
        durable.sync_folder(self._file.parent)


async def settle(paths: Paths, supervised: Supervised, log: Any) -> None:
    """What a crash left, before anybody here speaks to etcd. Raises PiccoloError, OSError: then this module starts again."""
    journal = JournalFile(paths).read()
    if journal is None:
        return
    if journal.stage is Stage.MOVING:
        log.warning("puts the former etcd back: its recovery did not come to its end")
        await put_back(paths, supervised, journal)
    elif journal.stage is Stage.BEGUN:
        await asyncio.to_thread(finish, paths, journal)
        log.info("brought a recovery to its end", aside=journal.aside)


async def put_back(paths: Paths, supervised: Supervised, journal: Journal) -> None:
    """Everything as it was before. Done again after a crash at any step it goes on."""
    await asyncio.to_thread(Folder(paths).drop_etcd)
    await supervised.etcd_as_written()
    await supervised.etcd_gone()
    await asyncio.to_thread(_put_back, paths, journal)
    await supervised.etcd_as_written()


def _put_back(paths: Paths, journal: Journal) -> None:
    aside = paths.etcd_data.with_name(journal.aside)
    if aside.exists():
        with suppress(FileNotFoundError):
            shutil.rmtree(paths.etcd_data)  # of the new one, which counts for nothing
        aside.rename(paths.etcd_data)
        durable.sync_folder(paths.state)
    durable.replace(paths.etcd_conf, journal.etcd.encode())
    if journal.owed:
        JournalFile(paths).write(msgspec.structs.replace(journal, stage=Stage.SETTLED, former=journal.owed))
    else:
        JournalFile(paths).remove()


def set_aside(paths: Paths, journal: Journal) -> None:
    """Once etcd has ended. That there is something aside says that the data in its place is the new one's. Raises OSError."""
    aside = paths.etcd_data.with_name(journal.aside)
    try:
        paths.etcd_data.rename(aside)
    except FileNotFoundError:
        aside.mkdir(mode=0o700)
    durable.sync_folder(paths.state)


def finish(paths: Paths, journal: Journal) -> None:
    """After the commit: this node knows itself alone. Done again after a crash it does the same. Raises OSError."""
    assert journal.memory is not None
    members_file.begin_anew(paths, journal.members)
    MemoryFile(paths.cluster / "seen.json").write(journal.memory)
    JournalFile(paths).write(msgspec.structs.replace(journal, stage=Stage.SETTLED))

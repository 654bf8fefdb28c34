"""Rebuilds a damaged log from what of it still proves itself. Deletes nothing: the damaged files are set aside.

Kept is every entry from the first one up to the damage, and the newest snapshot that verifies, with the entries that follow
it, when that reaches further; the revs between the two are declared as a gap, for which the snapshot stands. Entries are
looked for in the tables and, when those do not reach the last acknowledged rev, in the raw bytes of the files: each proves
itself by its digest, and its place by its parent.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from piccolod import durable
from piccolod.errors import PiccoloError, StoreCorrupt
from services.persistence.carve import carve
from services.persistence.chain import Broken, Chain, check_snapshot, longest
from services.persistence.entry import (
    GENESIS,
    CannotOpen,
    Sealed,
    SnapshotHeader,
    digest_of,
    entry_header,
    open_bytes,
    open_entry,
)
from services.persistence.head import HeadFile, Mark
from services.persistence.log import FORMAT, Gap, LogFile, LogReader, Meta, named_errors
from services.persistence.secret import SecretKey
from services.persistence.state import State
from services.persistence.verify import head_path

_COMPANIONS: Final = ("-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Salvage:
    """What a new log will hold. `lost` counts revs that are known to have been and whose changes are nowhere any more."""

    entries: tuple[Sealed, ...]
    snapshots: tuple[Sealed, ...]
    meta: Meta
    rev: int
    lost: int


@dataclass(slots=True)
class _Found:
    """Everything that proves itself, by digest. `carved` are those that only the raw bytes show: one of a write that was
    refused when the disk was full may be among them."""

    entries: dict[bytes, Sealed] = field(default_factory=dict)
    carved: set[bytes] = field(default_factory=set)
    snapshots: dict[int, tuple[SnapshotHeader, Sealed]] = field(default_factory=dict)
    losses: int = 0


def salvage(db: Path, cluster: str, key: SecretKey | None, also: Iterable[Sealed] = ()) -> Salvage:
    """What can be kept of `db`. Reads only. Without the key by digests alone; the next unlock proves the rest.

    Raises StoreCorrupt for a key that opens nothing of a log that is there: a wrong key is no reason to begin anew.

    `also` is what is known from elsewhere: a snapshot of the state in memory, when the damage came under a running store.
    """
    mark = HeadFile(head_path(db)).read()
    found = _Found()
    _take(also, cluster, key, found)
    _take_tables(db, cluster, key, found)
    saved = _assemble(found, cluster, mark)
    if saved.lost or mark is None:
        readable = set(found.entries)
        _take(carve(db), cluster, key, found)
        found.carved = found.entries.keys() - readable
        saved = _assemble(found, cluster, mark)
    if key is not None and not found.entries and not found.snapshots and salvage(db, cluster, None).entries:
        raise StoreCorrupt(f"{db} cannot be opened with this key", hint="put back the keyset that belongs to this log")
    return saved


def kept_of_copy(db: Path, cluster: str, key: SecretKey | None) -> Salvage:
    """What of a member's copy proves itself in the tables as they can be read: the cluster has the rest, so nothing is lost.

    Raises StoreCorrupt for a key that opens nothing of it.
    """
    found = _Found()
    _take_tables(db, cluster, key, found)
    if key is not None and not found.entries and not found.snapshots and kept_of_copy(db, cluster, None).rev:
        raise StoreCorrupt(f"{db} cannot be opened with this key", hint="the keyset is not that of this log")
    saved = _assemble(found, cluster, None)
    return replace(saved, meta=Meta(FORMAT, cluster, found.losses, saved.meta.gaps), lost=0)


def rebuild(db: Path, saved: Salvage) -> Path | None:
    """Puts a log of `saved` in the place of `db`; returns where the damaged file went, None when there was none.

    The new log is complete and synced, and the old files have their second name, before anything is replaced: a death
    at any point leaves either the damaged files in place or a finished log that `finish` puts there at the next open.
    """
    draft = db.with_name(db.name + ".rebuilding")
    _remove(draft)
    log = LogFile.create(draft, saved.meta)
    try:
        log.fill(saved.entries, saved.snapshots, saved.meta)
        log.settle()
    finally:
        log.close()
    with named_errors(db):
        aside = _set_aside(db)
        durable.sync_folder(db.parent)
        os.rename(draft, _ready(db))
        durable.sync_folder(db.parent)
    finish(db)
    return aside


def finish(db: Path) -> None:
    """Ends a rebuild that was cut short after its point of no return; otherwise does nothing."""
    if not _ready(db).exists():
        return
    with named_errors(db):
        # The old write-ahead log first: beside the new file SQLite would take it for the new file's own.
        for suffix in _COMPANIONS:
            Path(f"{db}{suffix}").unlink(missing_ok=True)
        durable.sync_folder(db.parent)
        os.rename(_ready(db), db)
        durable.sync_folder(db.parent)


def _ready(db: Path) -> Path:
    return db.with_name(db.name + ".repaired")


def _remove(db: Path) -> None:
    for suffix in ("", *_COMPANIONS):
        Path(f"{db}{suffix}").unlink(missing_ok=True)


def _set_aside(db: Path) -> Path | None:
    """A second name for the damaged file and its write-ahead log; a copy where the file system has no second names."""
    if not db.exists():
        return None
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = db.with_name(f"{db.name}.corrupt-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = db.with_name(f"{db.name}.corrupt-{stamp}-{number}")
    for suffix in ("", "-wal"):
        source, target = Path(f"{db}{suffix}"), Path(f"{aside}{suffix}")
        if source.exists():
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
    return aside


def _take_tables(db: Path, cluster: str, key: SecretKey | None, found: _Found) -> None:
    """What SQLite can read: up to the first page that it cannot, table by table."""
    with contextlib.suppress(PiccoloError):
        reader = LogReader(db)
        try:
            with contextlib.suppress(PiccoloError):
                found.losses = reader.meta().losses
            for items in (reader.entries(), reader.snapshots()):
                with contextlib.suppress(PiccoloError):
                    _take(items, cluster, key, found)
        finally:
            reader.close()


def _take(items: Iterable[Sealed], cluster: str, key: SecretKey | None, found: _Found) -> None:
    for item in items:
        if digest_of(item.header, item.nonce, item.sealed) != item.digest or item.digest in found.entries:
            continue
        with contextlib.suppress(Broken, CannotOpen, msgspec.MsgspecError):
            if _is_entry(item, cluster):
                if key is not None:
                    open_entry(key.cipher, item)
                found.entries[item.digest] = item
            else:
                header = check_snapshot(item, cluster)
                if key is not None:
                    State.from_image(header.rev, header.of, open_bytes(key.cipher, item))
                found.snapshots[item.rev] = (header, item)


def _is_entry(item: Sealed, cluster: str) -> bool:
    try:
        header = entry_header(item)
    except msgspec.MsgspecError:
        return False
    if header.cluster != cluster or header.rev != item.rev:
        raise Broken(item.rev, "of another cluster or rev")
    return True


def _assemble(found: _Found, cluster: str, mark: Mark | None) -> Salvage:
    line = _Line(found, mark)
    chain = Chain(cluster)
    entries = longest(chain, line.after(GENESIS))
    end = chain
    gaps: tuple[Gap, ...] = ()
    tail: list[Sealed] = []
    for header, _ in sorted(found.snapshots.values(), key=lambda pair: pair[0].rev, reverse=True):
        if header.rev <= chain.rev:
            break
        after = Chain(cluster)
        after.stand_on(header)
        following = longest(after, line.after(header.of))
        # Of two that reach equally far the older one: more entries follow it.
        if after.rev > chain.rev and after.rev >= end.rev:
            end, gaps, tail = after, (Gap(chain.rev + 1, header.rev),), following
    entries += tail
    digests = {entry.rev: entry.digest for entry in entries}
    anchors = {gap.last for gap in gaps}
    snapshots = tuple(
        item for header, item in found.snapshots.values() if header.rev in anchors or digests.get(header.rev) == header.of
    )
    known = max([end.rev, mark.rev if mark else 0, *(entry.rev for entry in found.entries.values()), *found.snapshots])
    lost = known - end.rev
    losses = max(found.losses, mark.losses if mark else 0) + (1 if lost else 0)
    return Salvage(tuple(entries), snapshots, Meta(FORMAT, cluster, losses, gaps), end.rev, lost)


class _Line:
    """Which entry follows which. Of rivals the one that leads to the acknowledged rev wins, then the longer line, then
    the one that was found first, which is the one in the tables. Behind the acknowledged rev the raw bytes count nothing."""

    def __init__(self, found: _Found, mark: Mark | None) -> None:
        self._carved = found.carved
        self._last = mark.digest if mark else None
        self._heirs: dict[bytes, list[Sealed]] = defaultdict(list)
        self._worth: dict[bytes, tuple[bool, int]] = {}
        for entry in found.entries.values():
            self._heirs[entry_header(entry).parent].append(entry)
        for entry in sorted(found.entries.values(), key=lambda item: item.rev, reverse=True):
            best = max((self._worth[heir.digest] for heir in self._heirs[entry.digest]), default=(False, 0))
            marked = entry.digest == self._last
            self._worth[entry.digest] = (marked or best[0], best[1] + 1)

    def after(self, digest: bytes) -> list[Sealed]:
        line: list[Sealed] = []
        acknowledged = True
        while heirs := self._heirs.get(digest):
            acknowledged = acknowledged and digest != self._last
            if not acknowledged:
                heirs = [heir for heir in heirs if heir.digest not in self._carved]
                if not heirs:
                    break
            heir = max(heirs, key=lambda item: self._worth[item.digest])
            line.append(heir)
            digest = heir.digest
        return line

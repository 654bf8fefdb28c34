"""Reads a log from the disk and proves it: without the key by digests, with the key by opening what is sealed.

Nothing here changes a file. `survey` looks at everything, for `store check` and the check in the background; `load` is the
short way of an unlock: the newest snapshot and the entries after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from piccolod.errors import StoreCorrupt
from services.persistence.chain import Broken, Chain, check_mark, check_snapshot
from services.persistence.entry import CannotOpen, Op, Sealed, SnapshotHeader, open_bytes, open_entry
from services.persistence.head import HeadFile, Mark
from services.persistence.log import REPAIR_HINT, LogReader, Meta
from services.persistence.secret import SecretKey
from services.persistence.state import State


@dataclass(frozen=True, slots=True)
class Survey:
    """What a whole log is worth. `problem` is empty when all of it verifies; `good_rev` is the last rev before the damage."""

    file: str
    entries: int
    first_rev: int
    good_rev: int
    head_rev: int
    problem: str

    @property
    def ok(self) -> bool:
        return not self.problem


@dataclass(frozen=True, slots=True)
class Loaded:
    state: State
    chain: Chain
    meta: Meta
    snapshot_rev: int


def head_path(db: Path) -> Path:
    return db.with_suffix(".head")


def survey(db: Path, cluster: str, key: SecretKey | None = None, *, whole: bool = True) -> Survey:
    """Checks pages, chain, snapshots and, with the key, every seal. Raises StoreUnavailable for a disk that does not answer.

    Safe beside a running writer: entries that are appended meanwhile are not seen, and that is no damage. `whole` false: a
    member's copy, of which an end that is missing is no damage, for the cluster has it.
    """
    mark = HeadFile(head_path(db)).read() if whole else None
    seen = _Seen(mark)
    try:
        reader = LogReader(db)
        try:
            with reader.frozen():
                _survey(reader, cluster, key.cipher if key else None, mark, seen)
        finally:
            reader.close()
    except Broken as error:
        return seen.result(db, f"{db} is damaged: {error.what}", min(seen.rev, error.rev - 1))
    except StoreCorrupt as error:
        return seen.result(db, error.detail, seen.rev)
    return seen.result(db, "", seen.rev)


class _Seen:
    def __init__(self, mark: Mark | None) -> None:
        self.entries = 0
        self.first = 0
        self.rev = 0
        self._mark = mark

    def result(self, db: Path, problem: str, good_rev: int) -> Survey:
        head_rev = max(self.rev, self._mark.rev if self._mark else 0)
        return Survey(str(db), self.entries, self.first, max(0, good_rev), head_rev, problem)


def _survey(reader: LogReader, cluster: str, cipher: AESGCM | None, mark: Mark | None, seen: _Seen) -> None:
    meta = _own_meta(reader, cluster)
    snapshots: dict[int, tuple[SnapshotHeader, Sealed]] = {}
    broken: Broken | None = None
    for item in reader.snapshots():
        try:
            snapshots[item.rev] = (check_snapshot(item, cluster), item)
        except Broken as error:
            broken = broken or error
    chain = Chain(cluster, meta.gaps, {rev: header for rev, (header, _) in snapshots.items()})
    for entry in reader.entries():
        chain.accept(entry)
        if cipher is not None:
            _open(cipher, entry)
        seen.entries += 1
        seen.first = seen.first or entry.rev
        seen.rev = chain.rev
        if chain.rev in snapshots and snapshots[chain.rev][0].of != chain.digest:
            raise Broken(chain.rev, f"snapshot {chain.rev} was not taken after entry {chain.rev}")
    chain.cross_gap()
    seen.rev = chain.rev
    check_mark(mark, chain, meta.losses)
    if broken is not None:
        # The entries are whole, so no rev is lost by this: only the name of the damage differs from theirs.
        raise StoreCorrupt(f"{reader.path} is damaged: {broken.what}", hint=REPAIR_HINT)
    if cipher is not None:
        for header, item in snapshots.values():
            _image(cipher, item, header)
    if problems := reader.structure_problems():
        raise StoreCorrupt(f"{reader.path} is damaged: {problems[0]}", hint=REPAIR_HINT)


def load(db: Path, cluster: str, key: SecretKey, *, whole: bool = True) -> Loaded:
    """The state of a log, every step to it verified. Raises StoreCorrupt, also for a wrong key; StoreUnavailable.

    `whole` as of `survey`.
    """
    mark = HeadFile(head_path(db)).read() if whole else None
    reader = LogReader(db)
    try:
        return _load(reader, cluster, key.cipher, mark)
    except Broken as error:
        raise StoreCorrupt(f"{db} is damaged: {error.what}", hint=REPAIR_HINT) from None
    finally:
        reader.close()


def _load(reader: LogReader, cluster: str, cipher: AESGCM, mark: Mark | None) -> Loaded:
    meta = _own_meta(reader, cluster)
    chain, state, snapshot_rev = Chain(cluster), State(), 0
    newest = next(reader.snapshots(), None)
    if newest is not None:
        header = check_snapshot(newest, cluster)
        chain.stand_on(header)
        state, snapshot_rev = _image(cipher, newest, header), header.rev
    for entry in reader.entries(after=snapshot_rev):
        entry_header = chain.accept(entry)
        state.apply(entry_header, entry.digest, _open(cipher, entry))
    check_mark(mark, chain, meta.losses)
    return Loaded(state, chain, meta, snapshot_rev)


def end_of(db: Path, cluster: str) -> tuple[Chain, Meta]:
    """Where a member's copy ends: its newest snapshot and what follows it, as far as digests show; `survey` looks at all.

    Raises StoreCorrupt, StoreUnavailable.
    """
    reader = LogReader(db)
    try:
        meta, chain = _own_meta(reader, cluster), Chain(cluster)
        if (newest := next(reader.snapshots(), None)) is not None:
            chain.stand_on(check_snapshot(newest, cluster))
        for entry in reader.entries(after=chain.rev):
            chain.accept(entry)
        return chain, meta
    except Broken as error:
        raise StoreCorrupt(f"{db} is damaged: {error.what}", hint=REPAIR_HINT) from None
    finally:
        reader.close()


def _own_meta(reader: LogReader, cluster: str) -> Meta:
    meta = reader.meta()
    if meta.cluster != cluster:
        raise StoreCorrupt(
            f"{reader.path} is the log of cluster {meta.cluster}, and the keyset is that of {cluster}",
            hint="put the keyset and the log of one node together",
        )
    return meta


def _open(cipher: AESGCM, entry: Sealed) -> list[Op]:
    try:
        return open_entry(cipher, entry)
    except CannotOpen:
        raise Broken(entry.rev, f"entry {entry.rev} cannot be opened with this key") from None


def _image(cipher: AESGCM, item: Sealed, header: SnapshotHeader) -> State:
    try:
        return State.from_image(header.rev, header.of, open_bytes(cipher, item))
    except (CannotOpen, msgspec.MsgspecError):
        raise Broken(header.rev, f"snapshot {header.rev} cannot be opened with this key") from None

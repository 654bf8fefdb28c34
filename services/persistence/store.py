"""The opened store: the state in memory and the log on the disk, kept as one.

A write goes through three steps: `Batch.add` decides and seals it on top of the state, `Store.append` makes the whole batch
durable, `Store.fold` makes it visible. Several writers share one transaction, each with a rev of its own. Only `append`,
`settle` and `keep_snapshot` touch the disk and may run in another thread; the rest belongs to one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from piccolod.errors import Invalid, NotLeader, PiccoloError, Problem, StoreFull, StoreUnavailable
from services.persistence.chain import Chain
from services.persistence.entry import (
    EntryHeader,
    Op,
    Sealed,
    SnapshotHeader,
    encode_snapshot_header,
    open_entry,
    seal_bytes,
    seal_entry,
)
from services.persistence.head import HeadFile, Mark
from services.persistence.log import FORMAT, SNAPSHOT_EVERY, LogFile, Meta, sync_folder
from services.persistence.secret import SecretKey
from services.persistence.state import Draft, Key, State, is_name
from services.persistence.verify import head_path, load

LABEL_LIMIT_BYTES: Final = 128


class Write(msgspec.Struct, frozen=True):
    """What one caller wants changed, under which preconditions, and in whose name."""

    ops: Sequence[Op]
    expect: Mapping[Key, int]
    author: str
    idem: str
    wall_ms: int


class Folded(msgspec.Struct, frozen=True):
    """One entry that became visible."""

    rev: int
    collections: tuple[str, ...]


class Store:
    """Unlocked: it holds the key. `state` is what readers see, and never ahead of the disk."""

    def __init__(self, db: Path, cluster: str, key: SecretKey) -> None:
        """Verifies and folds the log. Raises StoreCorrupt, StoreUnavailable."""
        loaded = load(db, cluster, key)
        self.db = db
        self.key = key
        self.meta: Meta = loaded.meta
        self.state: State = loaded.state
        self.chain: Chain = loaded.chain
        self.snapshot_rev = loaded.snapshot_rev
        self.in_doubt = False
        log = LogFile(db)
        log.reserve()
        self._log: LogFile | None = log
        self._head = HeadFile(head_path(db))
        # The mark may be of before a power loss, or damaged: from here on it is whole again.
        self._write_mark()

    @staticmethod
    def create(db: Path, cluster: str) -> None:
        """An empty log of a new cluster, durable."""
        db.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = db.with_name(db.name + ".first")
        draft.unlink(missing_ok=True)
        log = LogFile.create(draft, Meta(FORMAT, cluster))
        try:
            log.settle()
        finally:
            log.close()
        os.rename(draft, db)
        sync_folder(db.parent)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
        self._head.close()

    def append(self, batch: Batch, guard: Callable[[], None] = lambda: None) -> None:
        """Makes a batch durable as one transaction. Raises what `guard` raises, StoreFull, StoreUnavailable, StoreCorrupt.

        After a failure of the disk the store is `in_doubt`: `settle` says what is really there.
        """
        if self.in_doubt or self._log is None:
            raise StoreUnavailable(f"{self.db}: an earlier write failed and what is on the disk is not known yet")
        try:
            self._log.append([item.sealed for item in batch.items], guard)
        except PiccoloError as error:
            self.in_doubt = isinstance(error, StoreFull | StoreUnavailable)
            raise
        last = batch.items[-1]
        self._head.write(Mark(self.meta.losses, last.header.rev, last.sealed.digest))

    def fold(self, batch: Batch) -> list[Folded]:
        """Makes a durable batch visible."""
        return [self._fold(item) for item in batch.items]

    def settle(self) -> list[Item]:
        """After a failed write: opens the log anew and returns the entries that are durable all the same, for `fold_found`.

        The failed transaction may be in the write-ahead log though its sync failed. Here it either becomes durable for
        certain or is found absent. Raises StoreUnavailable or StoreFull while the disk does not recover.
        """
        if self._log is not None:
            log, self._log = self._log, None
            log.close()
        log = LogFile(self.db)
        try:
            log.settle()
            log.reserve()
            found = [self._verified(entry) for entry in log.entries(after=self.chain.rev)]
        except BaseException:
            log.close()
            raise
        self._log = log
        self.in_doubt = False
        return found

    def fold_found(self, items: Sequence[Item]) -> list[Folded]:
        """Makes visible what `settle` found."""
        folded = [self._fold(item) for item in items]
        self._write_mark()
        return folded

    def probe(self) -> None:
        """Whether the disk takes one whole entry now. Raises StoreFull, StoreUnavailable, StoreCorrupt."""
        if self._log is None:
            raise StoreUnavailable(f"{self.db}: the log is not open")
        self._log.probe()

    def wants_snapshot(self) -> bool:
        return self.state.rev - self.snapshot_rev >= SNAPSHOT_EVERY

    def snapshot(self, wall_ms: int) -> Sealed:
        """The state as of now, sealed."""
        state, chain = self.state, self.chain
        header = SnapshotHeader("snapshot", self.meta.cluster, chain.gen, state.rev, chain.epoch, state.digest, wall_ms)
        return seal_bytes(self.key.cipher, state.rev, encode_snapshot_header(header), state.image())

    def keep_snapshot(self, snapshot: Sealed) -> None:
        if self._log is None:
            raise StoreUnavailable(f"{self.db}: the log is not open")
        self._log.add_snapshot(snapshot, self.meta.gaps)
        self.snapshot_rev = snapshot.rev

    def _fold(self, item: Item) -> Folded:
        self.chain.advance(item.header, item.sealed.digest)
        self.state.apply(item.header, item.sealed.digest, item.ops)
        return Folded(item.header.rev, tuple({op.collection: None for op in item.ops}))

    def _verified(self, entry: Sealed) -> Item:
        return Item(msgspec.msgpack.decode(entry.header, type=EntryHeader), entry, tuple(open_entry(self.key.cipher, entry)))

    def _write_mark(self) -> None:
        self._head.write(Mark(self.meta.losses, self.chain.rev, self.chain.digest))


class Item(msgspec.Struct, frozen=True):
    """One entry, sealed and open."""

    header: EntryHeader
    sealed: Sealed
    ops: tuple[Op, ...]


class Batch:
    """Writes that will be one transaction. Each is decided on top of those before it, and refused alone."""

    def __init__(self, store: Store, gen: int, epoch: int) -> None:
        """Raises NotLeader for a term that is older than the last one that wrote."""
        gen += store.meta.losses
        last = (store.chain.gen, store.chain.epoch)
        if (gen, epoch) < last:
            raise NotLeader(
                f"term {(gen, epoch)} is older than {last}, which wrote last",
                hint="another term has written to this store; consensus must begin a newer one",
            )
        self._store = store
        self._draft = Draft(store.state)
        self._parent = store.state.digest
        self._gen = gen
        self._epoch = epoch
        self.items: list[Item] = []

    def knows(self, write: Write) -> bool:
        """Whether `add` would only repeat an earlier answer."""
        return self._draft.committed(write.author, write.idem) is not None

    def add(self, write: Write) -> int:
        """The rev that holds the write: a new one, the first one's for a retry, the current one when nothing changes.

        Raises Conflict, Invalid, TooLarge; the batch is then as it was.
        """
        _check_labels(write)
        known = self._draft.committed(write.author, write.idem)
        if known is not None:
            return known
        ops = self._draft.plan(write.ops, write.expect)
        if not ops:
            return self._draft.rev
        header = EntryHeader(
            cluster=self._store.meta.cluster,
            gen=self._gen,
            rev=self._draft.rev + 1,
            epoch=self._epoch,
            parent=self._parent,
            author=write.author,
            wall_ms=write.wall_ms,
            idem=write.idem,
        )
        sealed = seal_entry(self._store.key.cipher, header, ops)
        self._draft.add(write.author, write.idem, ops)
        self._parent = sealed.digest
        self.items.append(Item(header, sealed, ops))
        return header.rev


def _check_labels(write: Write) -> None:
    """They are in the plain header: short, printable, and chosen by programs."""
    for name, text in (("author", write.author), ("idempotency key", write.idem)):
        if not is_name(text or "-", LABEL_LIMIT_BYTES):
            limit = f"must be printable and have at most {LABEL_LIMIT_BYTES} bytes"
            raise Invalid(f"the {name} {limit}", errors=(Problem(name, limit),))

"""The opened store of a node alone: the ledger in memory and the log on the disk, kept as one.

A write goes through three steps: `Batch.add` decides and seals it on top of the state, `Store.append` makes the whole batch
durable, `Store.fold` makes it visible. Only `append`, `settle` and `keep_snapshot` touch the disk and may run in another
thread; the rest belongs to one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from piccolod import durable
from piccolod.errors import PiccoloError, StoreFull, StoreUnavailable
from services.persistence.entry import EntryHeader, Sealed, open_entry
from services.persistence.head import HeadFile, Mark
from services.persistence.ledger import Batch, Folded, Item, Ledger
from services.persistence.log import FORMAT, LogFile, Meta
from services.persistence.secret import SecretKey
from services.persistence.verify import head_path, load


class Store(Ledger):
    """`state` is never ahead of the disk."""

    def __init__(self, db: Path, cluster: str, key: SecretKey) -> None:
        """Verifies and folds the log. Raises StoreCorrupt, StoreUnavailable."""
        super().__init__(db, key, load(db, cluster, key))
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
        durable.sync_folder(db.parent)

    def gen_of(self, gen: int) -> int:
        return gen + self.meta.losses

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
        folded = self.fold(items)
        self._write_mark()
        return folded

    def probe(self) -> None:
        """Whether the disk takes one whole entry now. Raises StoreFull, StoreUnavailable, StoreCorrupt."""
        if self._log is None:
            raise StoreUnavailable(f"{self.db}: the log is not open")
        self._log.probe()

    def keep_snapshot(self, snapshot: Sealed) -> None:
        if self._log is None:
            raise StoreUnavailable(f"{self.db}: the log is not open")
        self._log.add_snapshot(snapshot, self.meta.gaps)
        self.snapshot_rev = snapshot.rev

    def _verified(self, entry: Sealed) -> Item:
        return Item(msgspec.msgpack.decode(entry.header, type=EntryHeader), entry, tuple(open_entry(self.key.cipher, entry)))

    def _write_mark(self) -> None:
        self._head.write(Mark(self.meta.losses, self.chain.rev, self.chain.digest))

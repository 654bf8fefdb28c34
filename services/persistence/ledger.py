"""The opened log in memory: the key, the verified end of the chain, and the documents that its entries make together.

`Batch.add` decides and seals a write on top of it, something makes the whole batch durable, `fold` makes it visible. Several
writers share one batch, each with a rev of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from piccolod.errors import Invalid, NotLeader, Problem
from services.persistence.chain import Chain
from services.persistence.entry import (
    EntryHeader,
    Op,
    Sealed,
    SnapshotHeader,
    encode_snapshot_header,
    seal_bytes,
    seal_entry,
)
from services.persistence.log import SNAPSHOT_EVERY, Meta
from services.persistence.secret import SecretKey
from services.persistence.state import Draft, Key, State, is_name
from services.persistence.verify import Loaded

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


class Item(msgspec.Struct, frozen=True):
    """One entry, sealed and open."""

    header: EntryHeader
    sealed: Sealed
    ops: tuple[Op, ...]


class Ledger:
    """Unlocked: it holds the key. `state` is what readers see. Belongs to one thread."""

    def __init__(self, db: Path, key: SecretKey, loaded: Loaded) -> None:
        self.db = db
        self.key = key
        self.meta: Meta = loaded.meta
        self.state: State = loaded.state
        self.chain: Chain = loaded.chain
        self.snapshot_rev = loaded.snapshot_rev

    def gen_of(self, gen: int) -> int:
        """The gen under which a term of `gen` writes here."""
        return gen

    def fold(self, items: Sequence[Item]) -> list[Folded]:
        """Makes durable entries visible."""
        return [self._fold(item) for item in items]

    def stand_on(self, header: SnapshotHeader, state: State) -> list[Folded]:
        """Goes on from a verified snapshot, which stands for all that was here and for the revs up to it."""
        touched = {collection for before in (self.state, state) for collection, _, _ in before.documents()}
        self.state = state
        self.chain.stand_on(header)
        self.snapshot_rev = header.rev
        return [Folded(header.rev, tuple(sorted(touched)))]

    def wants_snapshot(self) -> bool:
        return self.state.rev - self.snapshot_rev >= SNAPSHOT_EVERY

    def snapshot(self, wall_ms: int) -> Sealed:
        """The state as of now, sealed."""
        state, chain = self.state, self.chain
        header = SnapshotHeader("snapshot", self.meta.cluster, chain.gen, state.rev, chain.epoch, state.digest, wall_ms)
        return seal_bytes(self.key.cipher, state.rev, encode_snapshot_header(header), state.image())

    def _fold(self, item: Item) -> Folded:
        self.chain.advance(item.header, item.sealed.digest)
        self.state.apply(item.header, item.sealed.digest, item.ops)
        return Folded(item.header.rev, tuple({op.collection: None for op in item.ops}))


class Batch:
    """Writes that will be one transaction. Each is decided on top of those before it, and refused alone."""

    def __init__(self, ledger: Ledger, gen: int, epoch: int) -> None:
        """Raises NotLeader for a term that is older than the last one that wrote."""
        gen = ledger.gen_of(gen)
        last = (ledger.chain.gen, ledger.chain.epoch)
        if (gen, epoch) < last:
            raise NotLeader(
                f"term {(gen, epoch)} is older than {last}, which wrote last",
                hint="another term has written to this store; consensus must begin a newer one",
            )
        self._ledger = ledger
        self._draft = Draft(ledger.state)
        self._parent = ledger.state.digest
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
            cluster=self._ledger.meta.cluster,
            gen=self._gen,
            rev=self._draft.rev + 1,
            epoch=self._epoch,
            parent=self._parent,
            author=write.author,
            wall_ms=write.wall_ms,
            idem=write.idem,
        )
        sealed = seal_entry(self._ledger.key.cipher, header, ops)
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

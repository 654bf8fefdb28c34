"""The local log for its move into etcd, when a cluster is founded or recovered: as it is, verified once more.

The newest snapshot stands for all before it, as it does in etcd, in chunks, for a message of the bus has 4 MiB at most; what
follows it is the tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from piccolod import clock
from piccolod.errors import Invalid, StoreCorrupt, TooLarge
from piccolod.protocol.log import CHUNK_BYTES, Exported, SnapshotInfo
from services.persistence import keyset as keysets
from services.persistence.catch_up import on_the_wire, verified
from services.persistence.chain import Broken, Chain, check_snapshot
from services.persistence.entry import Sealed, entry_header
from services.persistence.etcd_snapshot import BYTES, REVS
from services.persistence.keyset import Keyset
from services.persistence.ledger import Ledger
from services.persistence.log import REPAIR_HINT, LogReader
from services.persistence.secret import SecretKey

LIMIT: Final = 1000
# A quarter of etcd's quota, which for a moment holds the next one beside it.
SNAPSHOT_BYTES: Final = 64 * 1024 * 1024
# Beside these a message of the bus takes the largest entry and the keyset.
ENTRIES_BYTES: Final = 1024 * 1024


class Position(msgspec.Struct, frozen=True):
    """The end of the log as of one moment, and a snapshot of then: taken on the event loop, so that both are one."""

    rev: int
    digest: bytes
    gen: int
    snapshot: Sealed | None


def position(ledger: Ledger, after: int, db: Path) -> Position:
    """With a fresh snapshot where what follows the newest one on the disk is more than etcd would keep."""
    state, chain = ledger.state, ledger.chain
    fresh = None
    if after == 0:
        reader = LogReader(db)
        try:
            size_bytes, _ = reader.size_after(ledger.snapshot_rev)
        finally:
            reader.close()
        if state.rev - ledger.snapshot_rev > REVS or size_bytes > BYTES:
            fresh = ledger.snapshot(clock.wall_ms())
    return Position(state.rev, state.digest, chain.gen, fresh)


def export(
    db: Path, cluster: str, key: SecretKey, keyset: Keyset, at: Position, after: int, limit: int
) -> tuple[Exported, bytes]:
    """With the encoded snapshot, empty without one.

    Raises StoreCorrupt for a log that does not verify, Invalid for an `after` that is not in it, TooLarge.
    """
    if not 0 <= after <= at.rev or not 1 <= limit <= LIMIT:
        raise Invalid(f"after must be 0 to {at.rev} and limit 1 to {LIMIT}")
    reader = LogReader(db)
    try:
        snapshot, start = _start(reader, cluster, at, after)
        entries = _page(reader, start.rev, min(limit, at.rev - start.rev))
    except Broken as error:
        raise StoreCorrupt(f"{db} is damaged: {error.what}", hint=REPAIR_HINT) from None
    finally:
        reader.close()
    items, broken = verified(start, key, entries)
    if broken is not None:
        raise StoreCorrupt(f"{db} is damaged: {broken.what}", hint=REPAIR_HINT)
    raw = msgspec.msgpack.encode(on_the_wire(snapshot)) if snapshot is not None else b""
    exported = Exported(
        cluster=cluster,
        gen=at.gen,
        head_rev=at.rev,
        head_digest=at.digest,
        snapshot=SnapshotInfo(rev=snapshot.rev, chunks=-(-len(raw) // CHUNK_BYTES), size_bytes=len(raw)) if snapshot else None,
        entries=tuple(on_the_wire(item.sealed) for item in items),
        keyset=keysets.encode(keyset),
    )
    return exported, raw


def _start(reader: LogReader, cluster: str, at: Position, after: int) -> tuple[Sealed | None, Chain]:
    """The snapshot that goes with the page, and the chain that its first entry has to follow."""
    chain = Chain(cluster)
    if after == 0:
        snapshot = at.snapshot or next((item for item in reader.snapshots() if item.rev <= at.rev), None)
        if snapshot is None:
            return None, chain
        if len(snapshot.sealed) > SNAPSHOT_BYTES:
            raise TooLarge(f"the store has {len(snapshot.sealed)} bytes, and a move takes {SNAPSHOT_BYTES}")
        chain.stand_on(check_snapshot(snapshot, cluster))
        return snapshot, chain
    before = next(iter(_page(reader, after - 1, 1)), None)
    if before is not None and before.rev == after:
        chain.advance(entry_header(before), before.digest)
        return None, chain
    for snapshot in reader.snapshots():
        if snapshot.rev == after:
            chain.stand_on(check_snapshot(snapshot, cluster))
            return None, chain
    if at.rev == after:
        chain.rev, chain.digest = at.rev, at.digest
        return None, chain
    raise Broken(after, f"entry {after} is missing")


def _page(reader: LogReader, after: int, limit: int) -> Sequence[Sealed]:
    taken: list[Sealed] = []
    size_bytes = 0
    for entry in reader.entries(after, limit) if limit > 0 else ():
        if taken and size_bytes + len(entry.sealed) > ENTRIES_BYTES:
            break
        taken.append(entry)
        size_bytes += len(entry.sealed)
    return taken

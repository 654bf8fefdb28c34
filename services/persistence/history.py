"""The log as people read it: who wrote when, and with the key which documents."""

from __future__ import annotations

from pathlib import Path

import msgspec

from piccolod.errors import StoreCorrupt
from piccolod.protocol.persistence import LogEntry
from services.persistence.entry import CannotOpen, Sealed, entry_header, open_entry, snapshot_header
from services.persistence.log import REPAIR_HINT, LogReader
from services.persistence.secret import SecretKey

# As the snapshots' replay does it: no entry is above this rev.
_ABOVE_ALL = 2**62


def read(db: Path, after: int, limit: int, key: SecretKey | None) -> tuple[LogEntry, ...]:
    """Entries after `after`, oldest first; the last `limit` when `after` is negative. Raises StoreCorrupt, StoreUnavailable."""
    reader = LogReader(db)
    try:
        if after >= 0:
            return tuple(_shown(entry, key, db) for entry in reader.entries(after, limit))
        newest = [_shown(entry, key, db) for entry in reader.newest_entries(_ABOVE_ALL, limit)]
        return tuple(reversed(newest))
    finally:
        reader.close()


def written_ms(db: Path, rev: int) -> int:
    """When the last entry up to `rev` was written, or what stands for it was taken; 0: there is none. Raises as `read`."""
    reader = LogReader(db)
    try:
        for entry in reader.newest_entries(rev + 1, 1):
            return entry_header(entry).wall_ms
        for snapshot in reader.snapshots():
            return snapshot_header(snapshot).wall_ms
        return 0
    except msgspec.MsgspecError:
        raise StoreCorrupt(f"{db} is damaged: its last entry cannot be read", hint=REPAIR_HINT) from None
    finally:
        reader.close()


def _shown(entry: Sealed, key: SecretKey | None, db: Path) -> LogEntry:
    try:
        header = entry_header(entry)
        ops = open_entry(key.cipher, entry) if key is not None else []
    except (msgspec.MsgspecError, CannotOpen):
        raise StoreCorrupt(f"{db} is damaged: entry {entry.rev} cannot be read", hint=REPAIR_HINT) from None
    return LogEntry(
        rev=entry.rev,
        epoch=header.epoch,
        author=header.author,
        wall_ms=header.wall_ms,
        digest=entry.digest.hex(),
        parent=header.parent.hex(),
        size_bytes=len(entry.header) + len(entry.nonce) + len(entry.sealed),
        changed=tuple(f"{op.op.value} {op.collection}/{op.id}" for op in ops),
    )

"""The sealed log of a cluster, as commands. consensus carries its bytes to etcd and back and can read none of them.

persistence alone asks `consensus.append ... put_keyset`; consensus alone asks `persistence.drain ... export_chunk`.
Entries and snapshots are the very bytes of `services/persistence/entry.py`.
"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec

from piccolod.protocol.base import Nothing, Request

# One etcd transaction holds 128 operations and, with etcd's default, 1.5 MiB.
APPEND_ENTRIES: Final = 64
APPEND_BYTES: Final = 1280 * 1024
CHUNK_BYTES: Final = 512 * 1024


class SealedEntry(msgspec.Struct, frozen=True, array_like=True):
    rev: int
    header: bytes
    nonce: bytes
    sealed: bytes
    digest: bytes


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """`token` is the one of the kernel's term that is held now, 0 while nobody leads. `rev` 0: the log is empty."""

    rev: int
    digest: bytes
    token: int


class GetHead(Request[Head], frozen=True, kw_only=True):
    """As of now, by etcd's quorum. StoreUnavailable without one."""

    command: ClassVar[str] = "consensus.head"
    reply: ClassVar[type] = Head


class Append(Request[Nothing], frozen=True, kw_only=True):
    """All of `entries` behind the head that the caller saw, under the token of its term, or none of them.

    NotLeader, Conflict (the head is another one), StoreFull, StoreUnavailable: certainly not written. OutcomeUnknown: it
    may be written now or later; a `Head` at or beyond its last rev with its digest settles it, and so does the loss of the
    token.
    """

    command: ClassVar[str] = "consensus.append"
    reply: ClassVar[type] = Nothing
    token: int
    head_rev: int
    head_digest: bytes
    entries: tuple[SealedEntry, ...]


class Entries(msgspec.Struct, frozen=True, kw_only=True):
    """`first_rev`: etcd has it and what follows; 0 when it has none. Where it is after what was asked for, it is the oldest."""

    entries: tuple[SealedEntry, ...]
    first_rev: int


class GetEntries(Request[Entries], frozen=True, kw_only=True):
    """Those after `after`, in order, as many as `limit` and `limit_bytes` allow, one at least.

    Those that the watch has brought are answered as they came; `anew`: as etcd has them now, for who found one of them broken.
    """

    command: ClassVar[str] = "consensus.entries"
    reply: ClassVar[type] = Entries
    after: int
    limit: int = 256
    limit_bytes: int = 4 * 1024 * 1024
    anew: bool = False


class SnapshotInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`rev` 0: there is none. `bytes` chunks of CHUNK_BYTES make one encoded `SealedEntry`."""

    rev: int
    chunks: int
    size_bytes: int


class GetSnapshot(Request[SnapshotInfo], frozen=True, kw_only=True):
    """The newest whole one."""

    command: ClassVar[str] = "consensus.snapshot"
    reply: ClassVar[type] = SnapshotInfo


class Chunk(msgspec.Struct, frozen=True):
    data: bytes


class GetSnapshotChunk(Request[Chunk], frozen=True, kw_only=True):
    """NotFound: a newer snapshot has taken its place meanwhile."""

    command: ClassVar[str] = "consensus.snapshot_chunk"
    reply: ClassVar[type] = Chunk
    rev: int
    index: int


class PutSnapshot(Request[Nothing], frozen=True, kw_only=True):
    """One chunk, in order of `index` from 0. The last of `chunks` makes it count; then the log is trimmed behind it."""

    command: ClassVar[str] = "consensus.put_snapshot"
    reply: ClassVar[type] = Nothing
    token: int
    rev: int
    index: int
    chunks: int
    data: bytes


class Keyset(msgspec.Struct, frozen=True, kw_only=True):
    """`keyset` is the file's text; `mod` 0 and empty: the cluster has none yet."""

    keyset: bytes
    mod: int


class GetKeyset(Request[Keyset], frozen=True, kw_only=True):
    command: ClassVar[str] = "consensus.keyset"
    reply: ClassVar[type] = Keyset


class PutKeyset(Request[Nothing], frozen=True, kw_only=True):
    """In the place of the one with `seen_mod`. Conflict: another one is there. The other errors as of `Append`."""

    command: ClassVar[str] = "consensus.put_keyset"
    reply: ClassVar[type] = Nothing
    token: int
    seen_mod: int
    keyset: bytes


# --- what consensus asks of persistence


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    rev: int
    digest: bytes


class Drain(Request[Drained], frozen=True, kw_only=True):
    """Answers once no write is on its way any more; those that wait, and those that come, are parked for `park_s` at most.

    A write whose outcome is unknown is no reason to wait: what ends the token ends it. A locked store is drained.
    """

    command: ClassVar[str] = "persistence.drain"
    reply: ClassVar[type] = Drained
    park_s: float = 2.0


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """`snapshot`: what stands for all before the first entry, where the local log does not reach back to 1 (ExportChunk)."""

    cluster: str
    gen: int
    head_rev: int
    head_digest: bytes
    snapshot: SnapshotInfo | None
    entries: tuple[SealedEntry, ...]
    keyset: bytes


class ExportLog(Request[Exported], frozen=True, kw_only=True):
    """The local log after `after` in order, for its move into etcd; `after` 0 also gives the newest snapshot.

    With `hold_s` writes are parked for that long from the answer on, which waits for what is under way: it is all there is.
    Busy: a write does not end, or its outcome is not known. Conflict: this node is in a cluster already. Locked: the log
    cannot be verified. `recovers`: of a member whose etcd is lost, and of no node alone.
    """

    command: ClassVar[str] = "persistence.export_log"
    reply: ClassVar[type] = Exported
    after: int
    limit: int = 256
    hold_s: float = 0.0
    recovers: bool = False


class ExportChunk(Request[Chunk], frozen=True, kw_only=True):
    """One chunk of the snapshot that the last `ExportLog` named, in order of `index`.

    NotFound: it is kept no more, for the last chunk was asked for or a minute has passed, or it was another snapshot.
    """

    command: ClassVar[str] = "persistence.export_chunk"
    reply: ClassVar[type] = Chunk
    rev: int
    index: int

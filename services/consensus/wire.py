"""Values of etcd's keys as bytes: MessagePack of the structs, one encoding for each, so that values can be compared.

Fields named `at_ms` that are zero are filled with wall clock: for people, nothing is decided by them.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from piccolod import clock
from piccolod.leadership import keys
from piccolod.leadership.keys import AckRecord, EpochRecord, GenRecord, IntentRecord, LeadRecord, SessionRecord
from piccolod.leadership.records import ChangeRecord
from piccolod.protocol.cluster import KnownMember
from piccolod.protocol.log import SealedEntry
from services.consensus import cluster_records as cluster
from services.consensus.cluster_records import CandidateRecord, DrainRecord, HeadRecord, PauseRecord, SnapshotRecord

_TYPES: Final[dict[str, type[msgspec.Struct]]] = {
    keys.SESSION: SessionRecord,
    keys.EPOCH: EpochRecord,
    keys.LEAD: LeadRecord,
    keys.ACK: AckRecord,
    keys.INTENT: IntentRecord,
    keys.HISTORY: ChangeRecord,
    keys.GEN: GenRecord,
    keys.KERNEL_HEAD: HeadRecord,
    cluster.NODE: KnownMember,
    cluster.CANDIDATE: CandidateRecord,
    cluster.PAUSE: PauseRecord,
    cluster.DRAIN: DrainRecord,
    cluster.SNAPSHOT: SnapshotRecord,
}
_encoder: Final = msgspec.msgpack.Encoder()
_entries: Final = msgspec.msgpack.Decoder(SealedEntry)
_decoders: Final = {kind: msgspec.msgpack.Decoder(struct) for kind, struct in _TYPES.items()}


def encode(value: Any) -> bytes:
    """Bytes are taken as they are: the sealed log's own."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, LeadRecord | ChangeRecord) and not value.at_ms:
        value = msgspec.structs.replace(value, at_ms=clock.wall_ms())
    return _encoder.encode(value)


def decode(key: str, value: bytes) -> Any:
    """The value of a key; None for keys of other kinds, and for bytes that are none of ours.

    What is left out costs no safety: every transaction that would rest on its absence compares the key itself.
    """
    decoder = _decoders.get(key) or _decoders.get(key[: key.find("/") + 1])
    if decoder is None:
        return None
    try:
        return decoder.decode(value)
    except msgspec.MsgspecError:
        return None


def entry(key: str, value: bytes) -> SealedEntry:
    """What is none keeps its place, with bytes that no check passes: who verifies it names it."""
    try:
        return _entries.decode(value)
    except msgspec.MsgspecError:
        return SealedEntry(int(key.rpartition("/")[2]), b"", b"", value, b"")

"""Leadership in etcd: the keys, relative to `/piccolo/<cluster_id>/`, and the values that they hold.

Values are for a driver to encode. Fields named `at_ms` are wall clock for people: zero here, filled in by whoever sends, since
the core knows no wall clock and nothing is decided by it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from piccolod.leadership.roles import Reason

SESSION: Final = "sess/"
EPOCH: Final = "epoch/"
LEAD: Final = "lead/"
ACK: Final = "ack/"
INTENT: Final = "intent/"
HISTORY: Final = "hist/"
GEN: Final = "gen"
KERNEL_HEAD: Final = "ctl/head"
KEYSET: Final = "keyset"


class SessionRecord(msgspec.Struct, frozen=True):
    """`sess/<node>`. Its create revision is the sid; takers look at its mod revision, never at `seq`."""

    lease_id: int
    boot_id: str
    seq: int
    span_s: float
    applied_rev: int = 0


class EpochRecord(msgspec.Struct, frozen=True):
    """`epoch/<resource>`, never deleted. Its mod revision is the token of the term."""

    epoch: int
    node: str
    sid: int
    span_s: float
    held: bool


class LeadRecord(msgspec.Struct, frozen=True):
    """`lead/<resource>`, on the holder's lease: for those who look; nothing is decided by it."""

    node: str
    epoch: int
    address: str
    reason: Reason
    at_ms: int = 0


class AckRecord(msgspec.Struct, frozen=True):
    """`ack/<node>`: who may take over from it."""

    nodes: tuple[str, ...]


class IntentRecord(msgspec.Struct, frozen=True):
    """`intent/<resource>`: the holder of this epoch is about to hand over."""

    epoch: int
    to: str
    address: str
    op: str


class GenRecord(msgspec.Struct, frozen=True):
    """`gen`: which life of the store this is, and the etcd cluster that it was written for."""

    gen: int
    etcd_cluster_id: int


Value = SessionRecord | EpochRecord | LeadRecord | AckRecord | IntentRecord | GenRecord

"""What a cluster keeps in etcd beside leadership: its nodes, who could lead, the sealed log. Keys and values.

Keys are relative to `/piccolo/<cluster id>/`, as those of `piccolod.leadership.keys`. The value of `node/<name>` is a
`piccolod.protocol.cluster.KnownMember`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from piccolod.leadership.placement import Standing

NODE: Final = "node/"
CANDIDATE: Final = "cand/"
LOG: Final = "ctl/log/"
SNAPSHOT: Final = "ctl/snap"
PAUSE: Final = "pause"
DRAIN: Final = "drain/"
UNLOCK: Final = "unlock/"

MEMBER: Final = "member"
WITNESS: Final = "witness"


class CandidateRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """`cand/<node>`, on its lease: whether the node would lead the kernel, and why not; how it stands to each app."""

    eligible: bool
    reason: str
    apps: dict[str, Standing] = {}


class HeadRecord(msgspec.Struct, frozen=True):
    """`ctl/head`: the newest rev that is committed. `gen` is the store's life in which it was."""

    rev: int
    digest: bytes
    gen: int


class SnapshotRecord(msgspec.Struct, frozen=True):
    """`ctl/snap`: the newest whole snapshot; its bytes are in `chunks` keys."""

    rev: int
    chunks: int
    size_bytes: int


class PauseRecord(msgspec.Struct, frozen=True):
    """`pause`: while it is there nothing moves between nodes."""

    author: str
    since_ms: int = 0


class DrainRecord(msgspec.Struct, frozen=True):
    """`drain/<node>`: while it is there the node leads nothing that another one can, and takes nothing over."""

    author: str
    since_ms: int = 0


class GrantRecord(msgspec.Struct, frozen=True):
    """`unlock/<node>`: the last grant of the store's key to a node, and who gave it. For the next one, and for people."""

    node: str
    sid: int
    boot_id: str
    giver: str
    at_ms: int


def tunnel_of(rpc: str) -> str:
    """The `HOST:PORT` of a node's tunnel: the port below that for calls between nodes. Empty where that is not known."""
    host, colon, port = rpc.rpartition(":")
    return f"{host}:{int(port) - 1}" if colon and port.isdecimal() else ""


def prefix(cluster: str) -> str:
    return f"/piccolo/{cluster}/"


def log_key(rev: int) -> str:
    """Keys sort as revs do."""
    return f"{LOG}{rev:020}"


def chunk_key(rev: int, index: int) -> str:
    return f"{SNAPSHOT}/{rev:020}/{index:06}"

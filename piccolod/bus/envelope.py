"""The frames on the wire.

An event is `[topic][header][body]`, a command and its reply one frame each; headers, bodies and commands are
MessagePack. The topic is `Type/key|`: the bar ends the prefix, so that `app:a` is not `app:ab`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from piccolod.protocol.base import Event

VERSION: Final = 1

# libzmq's limit for one message of a peer: larger ones close its connection.
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
HIGH_WATER: Final = 1000  # never 0 (unbounded memory) and never with XPUB_NODROP (one frozen reader starves all): measured
RECONNECT_MS: Final = 10


class Header(msgspec.Struct, frozen=True, array_like=True):
    """`seq` counts what one life of a publisher sent; `epoch` (one life of the broker) and `topic_seq` are the broker's."""

    v: int
    type: str
    src: str
    inst: str
    seq: int
    epoch: int
    topic_seq: int
    mono_ns: int
    wall_ms: int
    trace: str


class CommandFrame(msgspec.Struct, frozen=True, array_like=True):
    """A request. `deadline_ns` on CLOCK_BOOTTIME: what arrives later is not run."""

    v: int
    id: int
    cmd: str
    src: str
    inst: str
    deadline_ns: int
    idem: str
    trace: str
    args: msgspec.Raw


class ReplyFrame(msgspec.Struct, frozen=True, array_like=True):
    """An answer: `result` when `error` is None. `inst` is the life of the module that answered."""

    id: int
    inst: str
    result: msgspec.Raw
    error: dict[str, Any] | None


class SnapshotRequest(msgspec.Struct, frozen=True, array_like=True):
    """Asks the broker for the last value of each retained topic that begins with one of `prefixes`."""

    id: int
    prefixes: tuple[str, ...]


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """`last` has the topic_seq of every topic asked for, retained or not; `events` are [topic, header, body]."""

    id: int
    epoch: int
    last: dict[str, int]
    events: tuple[tuple[bytes, bytes, bytes], ...]


encode = msgspec.msgpack.Encoder().encode
decode_header = msgspec.msgpack.Decoder(Header).decode
decode_command = msgspec.msgpack.Decoder(CommandFrame).decode
decode_reply = msgspec.msgpack.Decoder(ReplyFrame).decode
decode_snapshot_request = msgspec.msgpack.Decoder(SnapshotRequest).decode
decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode

# What a decoder raises for bytes that are no message of ours; a deep nest of brackets is the latter.
UNREADABLE: Final = (ValueError, RecursionError)

NULL: Final = msgspec.Raw(b"\xc0")


def topic_of(event: Event) -> str:
    return f"{event.type}/{event.key()}|"


def prefix_of(kind: type[Event], key: str | None = None) -> str:
    """What to subscribe to: all events of a kind, or those of one key."""
    return f"{kind.type}/" if key is None else f"{kind.type}/{key}|"

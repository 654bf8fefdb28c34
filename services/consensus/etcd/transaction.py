"""Transactions of etcd as typed values: what is compared, what is done, what came of it."""

from __future__ import annotations

from enum import Enum
from typing import Any

from msgspec import Struct

from piccolod.errors import Bug
from services.consensus.etcd.header import Header
from services.consensus.etcd.stubs import kv, rpc

# The server's default, `--max-txn-ops`.
MOST_OPERATIONS = 128


class Of(Enum):
    """What of a key is compared."""

    VERSION = "version"
    CREATED = "create_revision"
    MODIFIED = "mod_revision"
    VALUE = "value"


class Is(Enum):
    EQUAL = rpc.Compare.EQUAL
    NOT_EQUAL = rpc.Compare.NOT_EQUAL
    GREATER = rpc.Compare.GREATER
    LESS = rpc.Compare.LESS


_TARGETS = {
    Of.VERSION: rpc.Compare.VERSION,
    Of.CREATED: rpc.Compare.CREATE,
    Of.MODIFIED: rpc.Compare.MOD,
    Of.VALUE: rpc.Compare.VALUE,
}


class Compare(Struct, frozen=True):
    key: str
    of: Of
    relation: Is
    value: int | bytes

    def to_wire(self) -> Any:
        wire = rpc.Compare(key=self.key.encode(), target=_TARGETS[self.of], result=self.relation.value)
        setattr(wire, self.of.value, self.value)
        return wire


def absent(key: str) -> Compare:
    return Compare(key, Of.CREATED, Is.EQUAL, 0)


def present(key: str) -> Compare:
    return Compare(key, Of.CREATED, Is.NOT_EQUAL, 0)


def created(key: str, revision: int) -> Compare:
    """It is the very one that was made at `revision`."""
    return Compare(key, Of.CREATED, Is.EQUAL, revision)


def not_created(key: str, revision: int) -> Compare:
    """It is gone, or was made anew since."""
    return Compare(key, Of.CREATED, Is.NOT_EQUAL, revision)


def modified(key: str, revision: int) -> Compare:
    """Nobody has written it since `revision`; 0: nobody has it."""
    return Compare(key, Of.MODIFIED, Is.EQUAL, revision)


def version(key: str, count: int) -> Compare:
    return Compare(key, Of.VERSION, Is.EQUAL, count)


def value(key: str, content: bytes) -> Compare:
    return Compare(key, Of.VALUE, Is.EQUAL, content)


class Put(Struct, frozen=True):
    key: str
    value: bytes
    lease: int = 0

    def to_wire(self) -> Any:
        return rpc.RequestOp(request_put=rpc.PutRequest(key=self.key.encode(), value=self.value, lease=self.lease))


class Delete(Struct, frozen=True):
    """One key, or all below a prefix."""

    key: str
    prefix: bool = False

    def to_wire(self) -> Any:
        request = rpc.DeleteRangeRequest(key=self.key.encode(), range_end=_end(self.key, self.prefix))
        return rpc.RequestOp(request_delete_range=request)


class Range(Struct, frozen=True):
    """One key, or all below a prefix in the order of keys. `revision` 0: now. `after`: only keys greater than this one."""

    key: str
    prefix: bool = False
    limit: int = 0
    revision: int = 0
    after: str = ""
    keys_only: bool = False
    serializable: bool = False

    def request(self) -> Any:
        return rpc.RangeRequest(
            key=self.after.encode() + b"\0" if self.after else self.key.encode(), range_end=_end(self.key, self.prefix),
            limit=self.limit, revision=self.revision, keys_only=self.keys_only, serializable=self.serializable,
        )  # fmt: skip

    def to_wire(self) -> Any:
        return rpc.RequestOp(request_range=self.request())


Operation = Put | Delete | Range


class Transaction(Struct, frozen=True):
    """All of `then` when every compare holds, else all of `otherwise`; nothing in between."""

    compares: tuple[Compare, ...] = ()
    then: tuple[Operation, ...] = ()
    otherwise: tuple[Operation, ...] = ()

    def to_wire(self) -> Any:
        """Raises Bug for one that etcd would refuse for its size."""
        for part in (self.compares, self.then, self.otherwise):
            if len(part) > MOST_OPERATIONS:
                raise Bug(f"a transaction has at most {MOST_OPERATIONS} operations, not {len(part)}")
        return rpc.TxnRequest(
            compare=[each.to_wire() for each in self.compares],
            success=[each.to_wire() for each in self.then],
            failure=[each.to_wire() for each in self.otherwise],
        )


class KeyValue(Struct, frozen=True):
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int

    @classmethod
    def of(cls, wire: Any) -> KeyValue:
        return cls(
            wire.key.decode(errors="surrogateescape"), wire.value, wire.create_revision, wire.mod_revision, wire.version,
            wire.lease,
        )  # fmt: skip


class Written(Struct, frozen=True):
    """Of a Put."""


class Deleted(Struct, frozen=True):
    """Of a Delete."""

    count: int


class Found(Struct, frozen=True):
    """Of a Range. `count`: how many there are, also beyond the limit."""

    keys: tuple[KeyValue, ...]
    count: int
    more: bool

    @classmethod
    def of(cls, wire: Any) -> Found:
        return cls(tuple(KeyValue.of(each) for each in wire.kvs), wire.count, wire.more)


class Result(Struct, frozen=True):
    """What a transaction did. `revision` is its own when it wrote; `sent_at` when it was sent, which a holder counts from."""

    succeeded: bool
    header: Header
    sent_at: float
    answers: tuple[Written | Deleted | Found, ...]

    @property
    def revision(self) -> int:
        return self.header.revision

    @classmethod
    def of(cls, wire: Any, sent_at: float) -> Result:
        return cls(wire.succeeded, Header.of(wire), sent_at, tuple(_answer(each) for each in wire.responses))


class Event(Struct, frozen=True):
    """One key was written or deleted; of a deleted one `item` has the key and the revision alone."""

    deleted: bool
    item: KeyValue

    @classmethod
    def of(cls, wire: Any) -> Event:
        return cls(wire.type == kv.Event.DELETE, KeyValue.of(wire.kv))


def prefix_end(prefix: bytes) -> bytes:
    """The first key that does not begin with `prefix`."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"


def _end(key: str, prefix: bool) -> bytes:
    return prefix_end(key.encode()) if prefix else b""


def _answer(wire: Any) -> Written | Deleted | Found:
    kind = wire.WhichOneof("response")
    if kind == "response_put":
        return Written()
    if kind == "response_delete_range":
        return Deleted(wire.response_delete_range.deleted)
    return Found.of(wire.response_range)

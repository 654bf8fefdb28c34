"""What one node has seen of leadership in etcd: one immutable value that advances by whole revisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

import msgspec

from piccolod.leadership import keys
from piccolod.leadership.keys import AckRecord, EpochRecord, GenRecord, IntentRecord, LeadRecord, SessionRecord

V = TypeVar("V")
_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


class Record(msgspec.Struct, Generic[V], frozen=True):
    """A key's value with its create and mod revision."""

    value: V
    create: int
    mod: int


class Change(msgspec.Struct, frozen=True):
    """What a revision did to a key: a record, or `None` where it was deleted. `rev` is that revision."""

    key: str
    rev: int
    record: Record[Any] | None


class View(msgspec.Struct, frozen=True):
    """The state of etcd at one revision, as far as leadership goes.

    Invariant: it is exactly what etcd held at `rev`. So it takes changes only if they begin where it ends; with a gap, a part
    or an older beginning it would show states that never were, in which an owner has no session, or two have one.
    `shape` counts what is more than a heartbeat, so that a heartbeat costs no look at all resources.
    """

    rev: int = 0
    shape: int = 0
    sessions: Mapping[str, Record[SessionRecord]] = _NONE
    epochs: Mapping[str, Record[EpochRecord]] = _NONE
    leads: Mapping[str, Record[LeadRecord]] = _NONE
    acks: Mapping[str, Record[AckRecord]] = _NONE
    intents: Mapping[str, Record[IntentRecord]] = _NONE
    gen: Record[GenRecord] | None = None

    def sid(self, node: str) -> int:
        """The sid of the node's session; 0 without one."""
        session = self.sessions.get(node)
        return session.create if session is not None else 0

    def may_take_from(self, owner: str, taker: str) -> bool:
        """Whether the owner has acknowledged the taker. A node may always take from its own former self."""
        ack = self.acks.get(owner)
        return owner == taker or (ack is not None and taker in ack.value.nodes)

    def vacant(self, resource: str) -> bool:
        """Nobody holds it: it was never led, or released, or its owner's session is gone."""
        epoch = self.epochs.get(resource)
        return epoch is None or not epoch.value.held or self.sid(epoch.value.node) != epoch.value.sid


_KINDS: Final = {
    keys.SESSION: "sessions",
    keys.EPOCH: "epochs",
    keys.LEAD: "leads",
    keys.ACK: "acks",
    keys.INTENT: "intents",
}


def read(rev: int, records: Mapping[str, Record[Any]], shape: int = 0) -> View:
    """The view that a linearizable read of the whole prefix gives."""
    kinds: dict[str, dict[str, Record[Any]]] = {kind: {} for kind in _KINDS.values()}
    for key, record in records.items():
        prefix, slash, name = key.partition("/")
        kind = _KINDS.get(prefix + slash)
        if kind is not None:
            kinds[kind][name] = record
    return View(rev=rev, shape=shape, gen=records.get(keys.GEN), **kinds)


def advance(view: View, after: int, rev: int, changes: Iterable[Change]) -> View | None:
    """The view at `rev`, given all changes of the prefix in the revisions `after + 1 ... rev`.

    `None` for a gap. A batch that overlaps with what is known adds only what is new; an old one changes nothing.
    """
    if after > view.rev:
        return None
    if rev <= view.rev:
        return view
    touched: dict[str, Any] = {}
    shape = view.shape
    for change in changes:
        if change.rev <= view.rev:
            continue
        prefix, slash, name = change.key.partition("/")
        if change.key == keys.GEN:
            touched["gen"] = change.record
            shape += 1
            continue
        kind = _KINDS.get(prefix + slash)
        if kind is None:
            continue
        if kind not in touched:
            touched[kind] = dict(getattr(view, kind))
        records = touched[kind]
        known = records.get(name)
        if change.record is None:
            records.pop(name, None)
        else:
            records[name] = change.record
        beat = kind == "sessions" and known is not None and change.record is not None and known.create == change.record.create
        shape += not beat
    return msgspec.structs.replace(view, rev=rev, shape=shape, **touched)


def same_shape(one: View, other: View) -> bool:
    """They differ by heartbeats alone."""
    return (
        one.epochs == other.epochs
        and one.leads == other.leads
        and one.acks == other.acks
        and one.intents == other.intents
        and one.gen == other.gen
        and {node: record.create for node, record in one.sessions.items()}
        == {node: record.create for node, record in other.sessions.items()}
    )

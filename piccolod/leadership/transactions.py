"""The transactions of leadership as data: all compares must hold, then all puts and deletes happen, at one revision.

A driver executes them against etcd and reports an `Outcome`. Nothing here knows time, sessions or rules: *when* each may be
sent is the core's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from piccolod.leadership import keys
from piccolod.leadership.keys import AckRecord, EpochRecord, GenRecord, IntentRecord, LeadRecord, SessionRecord
from piccolod.leadership.records import ChangeRecord
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.roles import Reason
from piccolod.leadership.view import View

# etcd takes 128 operations; a claim is three puts.
CLAIMS_AT_ONCE: Final = 40


class Kind(StrEnum):
    SESSION = "session"
    HEARTBEAT = "heartbeat"
    END = "end"
    EXPIRE = "expire"
    CLAIM = "claim"
    RELEASE = "release"
    INTENT = "intent"
    HANDOVER = "handover"
    ABORT = "abort"
    RECORD = "record"
    ACK = "ack"
    PROPOSAL = "proposal"


class Outcome(StrEnum):
    """What is known of a transaction that was sent. Unknown may commit at any later time."""

    COMMITTED = "committed"
    REFUSED = "refused"  # a compare failed: certainly not applied
    NO_LEASE = "no lease"  # it names a lease that is gone: certainly not applied
    UNKNOWN = "unknown"


class Field(StrEnum):
    CREATE = "create"
    MOD = "mod"
    VALUE = "value"


class Compare(msgspec.Struct, frozen=True):
    """A key's revision or value equals, or differs. An absent key has revisions 0 and the value `None`."""

    key: str
    field: Field
    value: Any
    equal: bool = True


class Put(msgspec.Struct, frozen=True):
    key: str
    value: Any
    lease_id: int = 0


class Transaction(msgspec.Struct, frozen=True):
    kind: Kind
    compares: tuple[Compare, ...]
    puts: tuple[Put, ...] = ()
    deletes: tuple[str, ...] = ()


class Claimed(msgspec.Struct, frozen=True):
    """One resource of a CLAIM: the epoch that begins, and why."""

    resource: str
    epoch: int
    reason: Reason
    phases: Mapping[str, float] = {}


def same_session(node: str, sid: int) -> Compare:
    """The node's session is this very one. A session that was deleted can never come back under its sid."""
    return Compare(keys.SESSION + node, Field.CREATE, sid)


def same_token(resource: str, token: int) -> tuple[Compare, ...]:
    """The term is this very one: nobody has claimed, released or handed over since."""
    return (Compare(keys.EPOCH + resource, Field.MOD, token),)


def same_gen(gen: GenRecord) -> Compare:
    """The store has not been begun anew."""
    return Compare(keys.GEN, Field.VALUE, gen)


def session(node: str, record: SessionRecord, gen: GenRecord) -> Transaction:
    key = keys.SESSION + node
    return Transaction(Kind.SESSION, (Compare(key, Field.CREATE, 0), same_gen(gen)), (Put(key, record),))


def heartbeat(node: str, sid: int, record: SessionRecord, gen: GenRecord) -> Transaction:
    compares = (same_session(node, sid), same_gen(gen))
    return Transaction(Kind.HEARTBEAT, compares, (Put(keys.SESSION + node, record),))


def end(node: str, sid: int) -> Transaction:
    return Transaction(Kind.END, (same_session(node, sid),), (), (keys.SESSION + node,))


def expire(node: str, view: View) -> Transaction:
    """Ends another node's session, as it was seen: one more heartbeat, or a new list of takers, refuses it."""
    seen = view.sessions[node]
    compares = (
        same_session(node, seen.create),
        Compare(keys.SESSION + node, Field.MOD, seen.mod),
        Compare(keys.ACK + node, Field.MOD, view.acks[node].mod),
    )
    return Transaction(Kind.EXPIRE, compares, (), (keys.SESSION + node,))


def claim(
    node: str, address: str, sid: int, lease_id: int, span_s: float, gen: GenRecord, view: View, claims: Iterable[Claimed]
) -> Transaction:
    """All of the resources or none. Each owner's session, and its leave to take over, is compared once."""
    compares = [same_session(node, sid), same_gen(gen)]
    puts: list[Put] = []
    owners: dict[str, int] = {}
    for one in claims:
        last = view.epochs.get(one.resource)
        compares += same_token(one.resource, last.mod if last is not None else 0)
        if last is not None and last.value.held and last.value.node != node:
            owner = last.value.node
            if owners.get(owner) != last.value.sid:
                owners[owner] = last.value.sid
                compares.append(Compare(keys.SESSION + owner, Field.CREATE, last.value.sid, equal=False))
                compares.append(Compare(keys.ACK + owner, Field.MOD, view.acks[owner].mod))
        puts += _term(one, node, address, sid, lease_id, span_s, last.value.node if last is not None else "")
    return Transaction(Kind.CLAIM, tuple(compares), tuple(puts))


def release(resource: str, token: int, held: EpochRecord, reason: Reason, phases: Mapping[str, float]) -> Transaction:
    over = msgspec.structs.replace(held, held=False)
    change = _change(resource, held.epoch, held.node, "", reason, phases)
    return Transaction(
        Kind.RELEASE, same_token(resource, token), (Put(keys.EPOCH + resource, over), change), (keys.LEAD + resource,)
    )


def intent(resource: str, token: int, seen_mod: int, record: IntentRecord) -> Transaction:
    key = keys.INTENT + resource
    return Transaction(Kind.INTENT, (*same_token(resource, token), Compare(key, Field.MOD, seen_mod)), (Put(key, record),))


def handover(
    resource: str, token: int, intent_mod: int, gen: GenRecord, view: View, giver: str, to: str, address: str, begins: Claimed
) -> Transaction:
    """Ends this node's term and begins the target's at one revision. The target's session must be the one in the view."""
    target = view.sessions[to]
    compares = (
        *same_token(resource, token),
        Compare(keys.INTENT + resource, Field.MOD, intent_mod),
        same_session(to, target.create),
        same_gen(gen),
    )
    puts = _term(begins, to, address, target.create, target.value.lease_id, target.value.span_s, giver)
    return Transaction(Kind.HANDOVER, compares, tuple(puts), (keys.INTENT + resource,))


def abort(resource: str, token: int, intent_mod: int) -> Transaction:
    key = keys.INTENT + resource
    return Transaction(Kind.ABORT, (*same_token(resource, token), Compare(key, Field.MOD, intent_mod)), (), (key,))


def record(node: str, address: str, sid: int, lease_id: int, terms: Iterable[tuple[int, Claimed]]) -> Transaction:
    """Puts the public records back that a lost lease took along."""
    compares, puts = [same_session(node, sid)], []
    for token, one in terms:
        key = keys.LEAD + one.resource
        compares += [*same_token(one.resource, token), Compare(key, Field.CREATE, 0)]
        puts.append(Put(key, LeadRecord(node, one.epoch, address, one.reason), lease_id))
    return Transaction(Kind.RECORD, tuple(compares), tuple(puts))


def ack(node: str, sid: int, seen_mod: int, nodes: tuple[str, ...]) -> Transaction:
    key = keys.ACK + node
    return Transaction(Kind.ACK, (same_session(node, sid), Compare(key, Field.MOD, seen_mod)), (Put(key, AckRecord(nodes)),))


def guarded(
    node: str,
    sid: int,
    token: int,
    gen: GenRecord,
    compares: tuple[Compare, ...],
    puts: tuple[Put, ...],
    deletes: tuple[str, ...],
) -> Transaction:
    """A write of the kernel's leader (APPEND, KEYSET, `want/*`): none but the term `token` of a living session commits it."""
    guard = (*same_token(RESOURCE_KERNEL, token), same_session(node, sid), same_gen(gen))
    return Transaction(Kind.PROPOSAL, (*guard, *compares), puts, deletes)


def _term(one: Claimed, node: str, address: str, sid: int, lease_id: int, span_s: float, before: str) -> tuple[Put, Put, Put]:
    return (
        Put(keys.EPOCH + one.resource, EpochRecord(one.epoch, node, sid, span_s, held=True)),
        Put(keys.LEAD + one.resource, LeadRecord(node, one.epoch, address, one.reason), lease_id),
        _change(one.resource, one.epoch, before, node, one.reason, one.phases),
    )


def _change(resource: str, epoch: int, before: str, after: str, reason: Reason, phases: Mapping[str, float]) -> Put:
    change = ChangeRecord(
        resource=resource, epoch=epoch, at_ms=0, from_node=before, to_node=after, reason=reason, phases=dict(phases)
    )
    return Put(f"{keys.HISTORY}{resource}/{epoch}{'' if after else '/end'}", change)

"""Who leads what, read from the core's state: pure functions, the same on the leader and on those who follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from piccolod import clock
from piccolod.leadership.keys import EpochRecord
from piccolod.leadership.records import ChangeRecord, TermRecord, TermState
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.roles import Reason
from piccolod.leadership.state import Leadership, Phase, Term
from piccolod.leadership.timing import wait_s
from piccolod.leadership.view import Record
from piccolod.protocol.consensus import Candidate
from services.consensus.facts import Facts

DRAINED: Final = "it is drained"


def records(state: Leadership, changes: Mapping[str, ChangeRecord]) -> dict[str, TermRecord]:
    """The newest term of every resource. `changes`: the last change of each, for when and why it ended."""
    found = {name: _seen(state, name, epoch, changes.get(name)) for name, epoch in state.view.epochs.items()}
    found.update((name, _own(state, term)) for name, term in state.terms.items())
    return found


def leads(state: Leadership, resource: str) -> bool:
    """The term is open on this node's page."""
    term = state.terms.get(resource)
    return term is not None and term.phase is Phase.OPEN


def holder(state: Leadership, resource: str) -> str:
    """The node that holds it by a session that lives; empty without one."""
    epoch = state.view.epochs.get(resource)
    return "" if epoch is None or state.view.vacant(resource) else epoch.value.node


def hard_at(state: Leadership, record: TermRecord) -> float:
    """D_hard of a term, on this clock: our own as the page has it, another's at the latest that its heartbeats allow."""
    session, timing = state.session, state.config.timing
    if record.resource in state.terms and session is not None:
        return clock.FOREVER if state.alone else session.hard_at
    seen = state.seen.get(record.node)
    return 0.0 if seen is None or not seen.mod else timing.hard_at(seen.at)


def deadline_s(state: Leadership, node: str, now: float) -> float | None:
    """Seconds left to D_hard of a node's session, as `hard_at` has it for a term; None: it never runs out."""
    if node != state.config.node:
        seen = state.seen.get(node)
        return 0.0 if seen is None or not seen.mod else max(0.0, state.config.timing.hard_at(seen.at) - now)
    if state.session is None:
        return 0.0
    return None if state.alone else max(0.0, state.session.hard_at - now)


def silent(state: Leadership, node: str, now: float) -> str:
    """Why nothing is heard of the node; empty when it beats. The reason stays the same while it is silent: it is announced."""
    if node == state.config.node:
        return ""
    session, seen = state.view.sessions.get(node), state.seen.get(node)
    if session is None or seen is None:
        return "it has no session: it is off, cut off, or just starting"
    return "its heartbeats have stopped" if now - seen.at > wait_s(session.value.span_s) else ""


def candidates(state: Leadership, facts: Facts) -> tuple[Candidate, ...]:
    """Every node, and whether it could take the kernel over now. The leader is one of them."""
    leader = holder(state, RESOURCE_KERNEL)
    found = ((name, unfit(state, facts, name)) for name in sorted({*facts.nodes, state.config.node}))
    return tuple(
        Candidate(node=name, eligible=not why, reason=why or ("leads it" if name == leader else "could take over"))
        for name, why in found
    )


def best_candidate(state: Leadership, facts: Facts) -> str:
    """The node to hand the kernel over to: of those that can take it the one that is furthest, then by name."""
    me = state.config.node
    able = [name for name in facts.nodes if name != me and not unfit(state, facts, name)]
    return max(able, key=lambda name: (state.view.sessions[name].value.applied_rev, name), default="")


def unfit(state: Leadership, facts: Facts, node: str) -> str:
    """Why the node could not take the kernel over now; empty if it could."""
    view = state.view
    if facts.is_witness(node):
        return "a witness votes and leads nothing"
    session = view.sessions.get(node)
    if session is None:
        return "it has no session: it is off, cut off, or just starting"
    owner = holder(state, RESOURCE_KERNEL)
    if owner == node:
        return ""
    if owner and not view.may_take_from(owner, node):
        return "the leader has not acknowledged it yet"
    if node in facts.drained:
        return DRAINED
    candidate = facts.candidates.get(node)
    if candidate is None:
        return "it has not campaigned yet"
    return "" if candidate.eligible else candidate.reason


def _own(state: Leadership, term: Term) -> TermRecord:
    session = state.session
    reason, since_ms = _begun(state, term.resource, term.epoch, term.reason)
    return TermRecord(
        resource=term.resource, gen=state.gen, epoch=term.epoch, token=term.token,
        sid=session.sid if session is not None else 0, node=state.config.node,
        state=TermState.OPEN if term.phase is Phase.OPEN else TermState.CLOSING,
        reason=reason, since_ms=since_ms, closing_at=None if term.phase is Phase.OPEN else term.closing_at,
    )  # fmt: skip


def _seen(state: Leadership, resource: str, record: Record[EpochRecord], change: ChangeRecord | None) -> TermRecord:
    epoch, me = record.value, state.config.node
    vacant = state.view.vacant(resource) or epoch.node == me  # ours and not on the page: not led
    if vacant:
        over = change is not None and change.epoch == epoch.epoch and not change.to_node
        reason = change.reason if over and change is not None else Reason.RELEASED if not epoch.held else Reason.EXPIRED
        since_ms = change.at_ms if over and change is not None else 0
    else:
        reason, since_ms = _begun(state, resource, epoch.epoch, Reason.EXPIRED)
    gen = state.view.gen.value.gen if state.view.gen is not None else state.gen
    return TermRecord(
        resource=resource, gen=gen, epoch=epoch.epoch, token=record.mod, sid=epoch.sid, node=epoch.node,
        state=TermState.RELEASED if vacant else TermState.OPEN, reason=reason, since_ms=since_ms,
    )  # fmt: skip


def _begun(state: Leadership, resource: str, epoch: int, reason: Reason) -> tuple[Reason, int]:
    """Why and when the term began, which its public record tells."""
    lead = state.view.leads.get(resource)
    if lead is None or lead.value.epoch != epoch:
        return reason, 0
    return lead.value.reason, lead.value.at_ms

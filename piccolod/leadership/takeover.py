"""What this node takes: it watches the sessions of others, expires those that went silent, and claims what nobody holds."""

from __future__ import annotations

import msgspec

from piccolod.leadership import session, terms, transactions
from piccolod.leadership.events import Answered
from piccolod.leadership.roles import Reason
from piccolod.leadership.state import Offer, Pending, Seen, Step, acts
from piccolod.leadership.timing import wait_s
from piccolod.leadership.transactions import CLAIMS_AT_ONCE, Claimed, Kind, Outcome
from piccolod.leadership.view import View


def look(step: Step, view: View) -> None:
    """Takes a newer view. A session that changed was seen now: after the bytes of the event, on this node's own clock."""
    if view.sessions is not step.state.view.sessions:
        seen = dict(step.state.seen)
        for node, record in view.sessions.items():
            known = seen.get(node)
            if known is None or known.mod != record.mod:
                seen[node] = Seen(record.mod, step.now)
        for node, known in seen.items():
            if known.mod and node not in view.sessions:
                seen[node] = Seen(0, step.now, step.now - known.at, known.asked_s)
        step.set(seen=seen)
    _look_at_offers(step, view)
    step.set(view=view)


def _look_at_offers(step: Step, view: View) -> None:
    """One that was taken back is forgotten. The intent of one that was made goes with the epoch, in the same transaction."""
    if view.intents is not step.state.view.intents:
        offered = dict(step.state.offered)
        for resource in [name for name in offered if name not in view.intents]:
            record = view.epochs.get(resource)
            if record is not None and record.value.epoch == offered[resource].epoch:
                del offered[resource]
        for resource, intent in view.intents.items():
            known, epoch = offered.get(resource), intent.value.epoch
            if intent.value.to == step.state.config.node and (known is None or known.epoch != epoch):
                offered[resource] = Offer(epoch, step.now)
        step.set(offered=offered)


def expires_at(step: Step, node: str) -> float:
    """When the node's session may be expired from here: W after its last change that was seen here."""
    timing = step.state.config.timing
    return step.state.seen[node].at + wait_s(step.state.view.sessions[node].value.span_s, timing.rate_difference)


def expire(step: Step) -> float:
    """Expires the sessions that went silent; returns when the next one may be due."""
    state = step.state
    me = state.config.node
    next_at = float("inf")
    if state.paused:
        return next_at
    under_way = {pending.resource for pending in state.pending.values() if pending.kind is Kind.EXPIRE}
    for node in state.view.sessions:
        if node == me or node in under_way or not state.view.may_take_from(node, me):
            continue
        due_at = max(expires_at(step, node), state.retry_at)
        if due_at <= step.now:
            _note_asked(step, node)
            step.send(transactions.expire(node, state.view), resource=node)
        else:
            next_at = min(next_at, due_at)
    return next_at


def _note_asked(step: Step, node: str) -> None:
    """Once: tries after the first are of how long EXPIRE takes."""
    known = step.state.seen[node]
    if not known.asked_s:
        step.set(seen={**step.state.seen, node: msgspec.structs.replace(known, asked_s=step.now - known.at)})


def claim(step: Step) -> float:
    """Claims what is wanted and vacant, in batches; returns when the next claim may be due."""
    state = step.state
    current = state.session
    assert current is not None
    found = _vacancies(step)
    if found != state.vacant:
        step.set(vacant=found)
    if state.leaving or not found:
        return float("inf")
    under_way = {one.resource for pending in state.pending.values() for one in pending.claims}
    stopping = set(state.unproven.values())
    due: list[Claimed] = []
    next_at = float("inf")
    for resource, since in found.items():
        due_at = since + state.wants[resource].delay_s
        if due_at > step.now:
            next_at = min(next_at, due_at)
        elif resource not in under_way and resource not in stopping:
            due.append(_claimed(step, resource, since))
    if not due or step.now < state.retry_at:
        return next_at
    if not acts(state, step.now):
        return min(next_at, step.now + state.config.timing.retry_s)
    if not state.lease_id:
        session.grant(step)
        return next_at
    config = state.config
    for first in range(0, len(due), CLAIMS_AT_ONCE):
        batch = tuple(due[first : first + CLAIMS_AT_ONCE])
        transaction = transactions.claim(
            config.node, config.address, current.sid, state.lease_id, config.timing.span_s, current.gen, state.view, batch
        )
        step.send(transaction, claims=batch)
    return next_at


def _vacancies(step: Step) -> dict[str, float]:
    """What is wanted, vacant, and ours to take, with the time since when that was seen."""
    state = step.state
    view, me = state.view, state.config.node
    found: dict[str, float] = {}
    for resource in state.wants:
        if resource in state.terms or not view.vacant(resource):
            continue
        epoch = view.epochs.get(resource)
        if epoch is not None and epoch.value.node != me:
            unasked = epoch.value.held and not view.may_take_from(epoch.value.node, me)
            if state.paused or unasked:
                continue
        found[resource] = state.vacant.get(resource, step.now)
    return found


def _claimed(step: Step, resource: str, since: float) -> Claimed:
    state = step.state
    last = state.view.epochs.get(resource)
    # Until CLAIM is sent: how long its commit takes only its answer tells.
    claimed = {"claimed": round((step.now - since) * 1000, 3)}
    if last is None:
        return Claimed(resource, 1, state.wants[resource].reason, claimed)
    if not last.value.held:
        return Claimed(resource, last.value.epoch + 1, Reason.RELEASED, claimed)
    return Claimed(resource, last.value.epoch + 1, Reason.EXPIRED, {**_silence(state.seen.get(last.value.node)), **claimed})


def _silence(owner: Seen | None) -> dict[str, float]:
    """Until its session was gone: the wait, and EXPIRE, where this node sent it; all as one where another node did."""
    if owner is None or not owner.silent_s:
        return {}
    if not owner.asked_s:
        return {"detected": round(owner.silent_s * 1000, 3)}
    return {
        "detected": round(owner.asked_s * 1000, 3), "expired": round((owner.silent_s - owner.asked_s) * 1000, 3),
    }  # fmt: skip


def on_claim(step: Step, pending: Pending, event: Answered) -> None:
    """Opens what was won, if the session that claimed it lives.

    At once only while nothing newer is known: an answer that was overtaken may be of a term that is over already. That one, and
    a claim without answer, shows in the view or is tried again.
    """
    state = step.state
    if event.outcome is not Outcome.COMMITTED or event.header is None or state.session is None:
        return
    rev = event.header.rev
    if state.session.sid != pending.sid or rev < state.own_rev or rev <= state.view.rev:
        return
    for one in pending.claims:
        if one.resource not in step.state.terms:
            terms.open_term(step, one.resource, rev, one.epoch, one.reason)


def record(step: Step) -> None:
    """Puts public records back that a lost lease took along."""
    state = step.state
    current = state.session
    assert current is not None
    leads = state.view.leads
    missing = [
        (term.token, Claimed(term.resource, term.epoch, term.reason))
        for term in state.terms.values()
        if term.resource not in leads and not term.dead and state.view.rev >= term.token
    ]
    if not state.lease_id and (missing or not state.granting):
        session.grant(step)
        return
    if not missing or step.now < state.retry_at or any(one.kind is Kind.RECORD for one in state.pending.values()):
        return
    config = state.config
    step.send(transactions.record(config.node, config.address, current.sid, state.lease_id, missing[:CLAIMS_AT_ONCE]))


# --- who may take from us


def acknowledge(step: Step) -> None:
    """Keeps `ack/<me>` at the member list. Deadlines are on the page before anyone is named who could take over."""
    state = step.state
    current = state.session
    assert current is not None
    me = state.config.node
    known = state.view.acks.get(me)
    others_known = known is not None and set(known.value.nodes) != {me}
    if not state.alone and not others_known and not current.resumed and not current.asked_ack and state.read_rev >= current.sid:
        # A list with takers can only be of this session, for none was asked by it: nobody may take over.
        step.set(alone=True)
        step.show()
    if state.members is None or any(one.kind is Kind.ACK for one in state.pending.values()) or step.now < state.retry_at:
        return
    wanted = tuple(sorted(state.members | {me}))
    others = wanted != (me,)
    if wanted == (known.value.nodes if known is not None else (me,)) and (others or step.state.alone):
        step.set(growing=False)
        return
    if others and step.state.alone:
        step.set(growing=True)
        if current.soft_at <= step.now:
            return  # the next heartbeat comes first
        step.set(alone=False)
        step.show()
    step.set_session(asked_ack=True)
    mod = known.mod if known is not None else 0
    step.send(transactions.ack(me, current.sid, mod, wanted), others=others)


def on_ack(step: Step, pending: Pending, event: Answered) -> None:
    current = step.state.session
    if event.outcome is not Outcome.COMMITTED or current is None or current.sid != pending.sid:
        return
    step.set(growing=False)
    if not pending.others:
        # Every earlier list compares a mod revision that is gone: none of them commits any more.
        step.set(alone=True)
        step.show()

"""The life of a term here: opened on the page once its token is committed, closed, proven stopped, released or handed over."""

from __future__ import annotations

from piccolod.leadership import events, session, transactions
from piccolod.leadership.actions import Closing, Ended, Opened, Proposed, SwitchoverFailed
from piccolod.leadership.events import Answered
from piccolod.leadership.keys import EpochRecord, IntentRecord
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.roles import Reason
from piccolod.leadership.state import Goal, Leadership, Pending, Phase, Step, Term
from piccolod.leadership.transactions import Claimed, Kind, Outcome

# --- open


def open_term(step: Step, resource: str, token: int, epoch: int, reason: Reason) -> None:
    """Opens a term whose token is committed. What was seen of etcd is on the disk before the page shows it.

    A token that was over once never opens again, whatever a watch that lost something shows.
    """
    current = step.state.session
    assert current is not None
    if was_over(step.state, resource, token):
        return
    step.set_term(Term(resource, token, epoch, reason))
    step.remember()
    step.show()
    step.act(Opened(resource, current.gen.gen, epoch, token, reason, _took_s(step, resource, epoch)))


def _took_s(step: Step, resource: str, epoch: int) -> float:
    offer, vacant = step.state.offered.get(resource), step.state.vacant.get(resource)
    if offer is not None and offer.epoch + 1 == epoch:
        return step.now - offer.since
    return 0.0 if vacant is None else step.now - vacant


def was_over(state: Leadership, resource: str, token: int) -> bool:
    return token <= state.ended.get(resource, 0)


def adopt(step: Step) -> None:
    """Opens what the view says is ours and the page does not: a handover to us, or a claim whose answer was lost.

    The view is as new as our own last transaction, so it is nothing that was released; a term whose RELEASE has no answer
    is still among the terms.
    """
    state = step.state
    current = state.session
    assert current is not None
    stopping = set(state.unproven.values())
    for resource, record in state.view.epochs.items():
        epoch = record.value
        ours = epoch.held and epoch.sid == current.sid and epoch.node == state.config.node
        if ours and resource not in state.terms and resource not in stopping:
            lead = state.view.leads.get(resource)
            open_term(step, resource, record.mod, epoch.epoch, lead.value.reason if lead else Reason.EXPIRED)


def check(step: Step) -> None:
    """Drops the terms whose token is no longer the newest. Revisions only grow: an older one is a watch that lost ours."""
    for term in step.state.terms.values():
        record = step.state.view.epochs.get(term.resource)
        if record is not None and record.mod > term.token:
            drop(step, term, _how_it_ended(term, record.value))


def _how_it_ended(term: Term, now: EpochRecord) -> Ended:
    """The answer to our own transaction may come after the view shows what it did."""
    if term.phase is Phase.STOPPED:
        if not now.held and now.epoch == term.epoch:
            return Ended.RELEASED
        if now.held and now.epoch == term.epoch + 1 and now.node == term.to:
            return Ended.HANDED_OVER
    return Ended.SUPERSEDED


def drop(step: Step, term: Term, why: Ended) -> None:
    step.set(terms={name: one for name, one in step.state.terms.items() if name != term.resource})
    step.set(ended={**step.state.ended, term.resource: term.token})
    step.show()
    session.forget(step, term, why)
    step.look = True


# --- close


def close(step: Step, term: Term, goal: Goal) -> Term:
    """Closes the term on the page, then asks for the proof that nothing of it lives."""
    if term.phase is Phase.OPEN:
        proof = step.prove(term.resource, term.token)
        step.show()
        step.act(Closing(term.resource, term.token))
        return step.set_term(term, phase=Phase.CLOSING, goal=goal, proof=proof, closing_at=step.now)
    return step.set_term(term, goal=goal)


def on_close(step: Step, event: events.Close) -> None:
    if (term := _term(step, event.resource, event.token)) is not None and term.phase is Phase.OPEN:
        close(step, term, Goal.HOLD)


def on_release(step: Step, event: events.Release) -> None:
    """Also in the middle of a handover: whichever of the two commits, this token is over."""
    wants = {name: want for name, want in step.state.wants.items() if name != event.resource}
    step.set(wants=wants)
    if (term := _term(step, event.resource, event.token)) is not None:
        term = close(step, term, Goal.RELEASE)
        step.set_term(term, dead=True, ending=event.reason)


def on_stopped(step: Step, event: events.Stopped) -> None:
    state = step.state
    if event.id in state.unproven:
        step.set(unproven={id_: name for id_, name in state.unproven.items() if id_ != event.id})
    for term in state.terms.values():
        if term.proof == event.id and term.phase is Phase.CLOSING:
            step.set_term(term, phase=Phase.STOPPED)


def leave(step: Step) -> None:
    for term in step.state.terms.values():
        if term.goal is not Goal.RELEASE:
            step.set_term(close(step, term, Goal.RELEASE), dead=True, ending=Reason.DRAIN)


# --- switchover


def on_switchover(step: Step, event: events.Switchover) -> None:
    state = step.state
    term = state.terms.get(event.resource)
    if term is None or term.phase is not Phase.OPEN or term.goal is not Goal.HOLD or state.paused or not _ready(step, event.to):
        step.act(SwitchoverFailed(event.resource, event.op))
        return
    step.set_term(
        term, goal=Goal.HANDOVER, to=event.to, address=event.address, op=event.op, ending=event.reason,
        give_up_at=event.give_up_at, intent_mod=0,
    )  # fmt: skip


def on_cancel(step: Step, event: events.CancelSwitchover) -> None:
    term = step.state.terms.get(event.resource)
    if term is not None and term.goal is Goal.HANDOVER:
        _give_up(step, term)


def _ready(step: Step, to: str) -> bool:
    """The target has a session, and a lease for its public record to hang on."""
    target = step.state.view.sessions.get(to)
    return to != step.state.config.node and target is not None and target.value.lease_id != 0


def _give_up(step: Step, term: Term) -> Term:
    if term.phase is Phase.OPEN:
        step.act(SwitchoverFailed(term.resource, term.op))
        return step.set_term(term, goal=Goal.HOLD)
    step.look = True
    return step.set_term(term, goal=Goal.RELEASE if term.dead else Goal.ABORT)


# --- what is to be sent


def drive(step: Step) -> None:
    """Sends the next transaction of each term that has a way to go."""
    for term in step.state.terms.values():
        if (term.phase is Phase.OPEN and term.goal is Goal.HOLD) or term.pending:
            continue
        if term.phase is not Phase.OPEN and term.dead and term.goal is Goal.HOLD and step.state.settled:
            term = _find_goal(step, term)
        if term.goal is Goal.HANDOVER and (step.now >= term.give_up_at or (step.state.settled and not _ready(step, term.to))):
            term = _give_up(step, term)
        if step.now < step.state.retry_at or not step.state.settled:
            continue  # what a refusal means shows only in a view that is as new
        if term.goal is Goal.HANDOVER:
            _hand_over(step, term)
        elif term.goal is Goal.ABORT:
            _abort(step, term)
        elif term.goal is Goal.RELEASE and term.phase is Phase.STOPPED:
            _release(step, term)


def _find_goal(step: Step, term: Term) -> Term:
    """A term that was closing when this process started: its handover goes on, if it had an intent, else it is released."""
    intent = step.state.view.intents.get(term.resource)
    if intent is None or intent.value.epoch != term.epoch or not _ready(step, intent.value.to):
        return step.set_term(term, goal=Goal.RELEASE)
    to = intent.value
    return step.set_term(
        term, goal=Goal.HANDOVER, ending=Reason.SWITCHOVER, to=to.to, address=to.address, op=to.op, intent_mod=intent.mod,
        give_up_at=step.now + step.state.config.timing.span_s,
    )  # fmt: skip


def _release(step: Step, term: Term) -> None:
    record = step.state.view.epochs.get(term.resource)
    if record is None or record.mod != term.token:
        return  # the view is behind; `check` decides once it is not
    phases = {"closing": round((step.now - term.closing_at) * 1000, 3)}
    transaction = transactions.release(term.resource, term.token, record.value, term.ending, phases)
    step.set_term(term, dead=True, pending=step.send(transaction, resource=term.resource))


def _hand_over(step: Step, term: Term) -> None:
    state = step.state
    current = state.session
    if current is None:
        return
    if term.phase is Phase.OPEN:
        record = IntentRecord(term.epoch, term.to, term.address, term.op)
        seen = state.view.intents.get(term.resource)
        if seen is not None and seen.value == record:
            # An INTENT whose answer was lost.
            step.set_term(close(step, term, Goal.HANDOVER), intent_mod=seen.mod)
            return
        transaction = transactions.intent(term.resource, term.token, seen.mod if seen is not None else 0, record)
        step.set_term(term, pending=step.send(transaction, resource=term.resource))
    elif term.phase is Phase.STOPPED:
        phases = {"closing": round((step.now - term.closing_at) * 1000, 3)}
        begins = Claimed(term.resource, term.epoch + 1, term.ending, phases)
        transaction = transactions.handover(
            term.resource, term.token, term.intent_mod, current.gen, state.view, state.config.node, term.to, term.address,
            begins,
        )  # fmt: skip
        step.set_term(term, pending=step.send(transaction, resource=term.resource))


def _abort(step: Step, term: Term) -> None:
    """Takes a handover back. It reopens here once no HANDOVER under this intent can commit any more.

    That is so after a committed ABORT, or by a linearizable read that shows another intent and still our token. A watch that
    lost half of a HANDOVER would show just that.
    """
    state = step.state
    seen = state.view.intents.get(term.resource)
    if state.exact and state.view.rev > term.intent_mod and (seen is None or seen.mod != term.intent_mod):
        # `check` has seen that the token is still ours at this revision.
        _reopen(step, term)
        return
    transaction = transactions.abort(term.resource, term.token, term.intent_mod)
    step.set_term(term, pending=step.send(transaction, resource=term.resource))


def _reopen(step: Step, term: Term) -> None:
    current = step.state.session
    assert current is not None
    step.set_term(Term(term.resource, term.token, term.epoch, term.reason))
    step.show()
    step.act(SwitchoverFailed(term.resource, term.op))
    step.act(Opened(term.resource, current.gen.gen, term.epoch, term.token, term.reason))


# --- what was answered


def on_answer(step: Step, pending: Pending, id_: int, event: Answered) -> None:
    """RELEASE, INTENT, HANDOVER, ABORT. What a refusal means is read from a view that is as new as the refusal."""
    term = step.state.terms.get(pending.resource)
    if term is None or term.pending != id_:
        return
    term = step.set_term(term, pending=0)
    if event.outcome is not Outcome.COMMITTED or event.header is None:
        if pending.kind is Kind.HANDOVER and event.outcome is not Outcome.UNKNOWN and term.goal is Goal.HANDOVER:
            _give_up(step, term)
        if pending.kind is Kind.ABORT and event.outcome is Outcome.REFUSED:
            step.set(next_read_at=step.now, retry_at=step.now + step.state.config.timing.retry_s)
        return
    if pending.kind is Kind.RELEASE:
        drop(step, term, Ended.RELEASED)
    elif pending.kind is Kind.HANDOVER:
        drop(step, term, Ended.HANDED_OVER)
    elif pending.kind is Kind.INTENT and term.goal is Goal.HANDOVER:
        step.set_term(close(step, term, Goal.HANDOVER), intent_mod=event.header.rev)
    elif pending.kind is Kind.ABORT and term.goal is Goal.ABORT and not term.dead:
        _reopen(step, term)


def _term(step: Step, resource: str, token: int) -> Term | None:
    term = step.state.terms.get(resource)
    return term if term is not None and term.token == token else None


# --- writes of the kernel's leader


def on_propose(step: Step, event: events.Propose) -> None:
    """Guarded by the term's token, the session and the gen. What is not of the open term is refused here already."""
    state = step.state
    term, current = _term(step, RESOURCE_KERNEL, event.token), state.session
    if term is None or current is None or term.phase is not Phase.OPEN:
        step.act(Proposed(event.proposal, Outcome.REFUSED, 0))
        return
    transaction = transactions.guarded(
        state.config.node, current.sid, term.token, current.gen, event.compares, event.puts, event.deletes
    )
    step.send(transaction, proposal=event.proposal)


def on_proposed(step: Step, pending: Pending, event: Answered) -> None:
    step.act(Proposed(pending.proposal, event.outcome, event.header.rev if event.header is not None else 0))

"""The life of this node's session: begun, kept by heartbeats, lost, proven stopped, ended in etcd, begun anew."""

from __future__ import annotations

from typing import Final

from piccolod import clock
from piccolod.leadership import transactions
from piccolod.leadership.actions import (
    RESTORED_HINT,
    Alarm,
    Closing,
    Ended,
    GrantLease,
    Opened,
    Over,
    Proposed,
    RevokeLease,
    SessionOpened,
    SessionOver,
)
from piccolod.leadership.events import Answered, Header, Memory, PageState, Started
from piccolod.leadership.keys import GenRecord, SessionRecord
from piccolod.leadership.roles import Reason
from piccolod.leadership.state import Leadership, Life, Pending, Phase, Session, Step, Term, acts
from piccolod.leadership.transactions import Kind, Outcome

_PAST: Final = float("-inf")

# --- the beginning of the process


def start(step: Step, event: Started) -> None:
    """Resumes the session that the page shows, if its deadline is ahead; else what may live here is stopped first.

    A page without a session has dropped it: that sid is never resumed.
    """
    memory, page = event.memory, event.page
    step.set(boot_id=event.boot_id, remembered=memory)
    if memory is not None:
        step.set(cluster_id=memory.cluster_id, highest=memory.rev, gen=memory.gen, restored=memory.restored)
    if page is not None and memory is not None and _may_resume(page, memory, step.now):
        _resume(step, page, GenRecord(page.gen, memory.cluster_id), event.running)
        return
    for resource in sorted({*event.running, *(page.terms if page is not None else ())}):
        token = page.terms[resource].token if page is not None and resource in page.terms else 0
        _watch_die(step, resource, token)
    if page is not None and page.sid:
        step.act(SessionOver(page.sid, Ended.NOT_RESUMED))
    step.show()


def _may_resume(page: PageState, memory: Memory, now: float) -> bool:
    return page.sid != 0 and page.gen == memory.gen and not memory.restored and now < page.hard_at


def _resume(step: Step, page: PageState, gen: GenRecord, running: tuple[str, ...]) -> None:
    alone = page.hard_at == clock.FOREVER
    # The deadlines stay those of the page. One that does not run says nothing of the last heartbeat.
    soft_at, hard_at = (_PAST, _PAST) if alone else (page.soft_at, page.hard_at)
    session = Session(page.sid, gen, soft_at, hard_at, step.now, resumed=True)
    step.set(life=Life.OPEN, session=session, lease_id=page.lease_id, alone=alone)
    for resource, shown in page.terms.items():
        term = Term(resource, shown.token, shown.epoch, Reason.BOOTSTRAP)
        if shown.closing:
            proof = step.prove(resource, shown.token)
            # It may have been put into a RELEASE. What was to become of it is found out once there is a view.
            term = step.set_term(term, phase=Phase.CLOSING, dead=True, proof=proof, closing_at=step.now)
            step.act(Closing(resource, term.token))
        else:
            step.set_term(term)
            step.act(Opened(resource, page.gen, term.epoch, term.token, term.reason))
    for resource in sorted(set(running) - set(page.terms)):
        _watch_die(step, resource, 0)


# --- heartbeats


def beat(step: Step) -> None:
    """Sends a heartbeat when one is due, and only while the supervisor acts."""
    state = step.state
    session = state.session
    if session is None or session.beating or step.now < session.next_beat_at:
        return
    timing = state.config.timing
    if not acts(state, step.now):
        step.set_session(next_beat_at=step.now + timing.retry_s)
        return
    step.set_session(beating=True, seq=session.seq + 1, next_beat_at=step.now + timing.beat_s)
    record = SessionRecord(state.lease_id, state.boot_id, session.seq + 1, timing.span_s, state.applied_rev)
    step.send(transactions.heartbeat(state.config.node, session.sid, record, session.gen))


def counted_from(pending: Pending, now: float) -> float:
    """The moment from which the holder counts: the send, never the answer."""
    return pending.sent_at


def on_heartbeat(step: Step, pending: Pending, event: Answered) -> None:
    session = step.state.session
    if session is None or session.sid != pending.sid:
        return
    timing = step.state.config.timing
    if event.outcome is Outcome.COMMITTED:
        sent_at = counted_from(pending, step.now)
        step.set_session(beating=False, soft_at=timing.soft_at(sent_at), hard_at=timing.hard_at(sent_at))
        if not step.state.alone:
            step.show()
        elif step.state.growing:
            step.look = True
    elif event.outcome is Outcome.REFUSED:
        gen = step.state.view.gen
        over(step, Ended.OTHER_GEN if gen is not None and gen.value != session.gen else Ended.SESSION_GONE)
    else:
        # Whether it commits or not: only an answer moves a deadline.
        step.set_session(beating=False, next_beat_at=max(step.now, pending.sent_at + timing.retry_s))


# --- the end


def over(step: Step, why: Ended) -> None:
    """The session is over, now and for ever: the page drops it first, then everything must be proven stopped."""
    state = step.state
    session = state.session
    assert session is not None
    step.set(life=Life.OVER, session=None, terms={}, alone=False, growing=False)
    step.show()
    for term in state.terms.values():
        forget(step, term, why)
    step.act(SessionOver(session.sid, why))
    step.look = True


def forget(step: Step, term: Term, why: Ended) -> None:
    """What remains to do for a term that has left the page: its proof, if there is none yet."""
    if term.phase is Phase.OPEN:
        _watch_die(step, term.resource, term.token)
    elif term.phase is Phase.CLOSING:
        step.set(unproven={**step.state.unproven, term.proof: term.resource})
    step.act(Over(term.resource, term.token, why))


def _watch_die(step: Step, resource: str, token: int) -> None:
    proof = step.prove(resource, token)
    step.set(unproven={**step.state.unproven, proof: resource})


def may_end(state: Leadership) -> bool:
    """END, and so a new session, comes only after every effect of the old one is proven stopped."""
    return not state.unproven


def reopen(step: Step) -> None:
    """Without a session: ends the record of the old one, then begins the next."""
    state = step.state
    if not may_end(state) or not state.settled or _asking(state) or step.now < state.retry_at:
        return
    node = state.config.node
    if sid := state.view.sid(node):
        step.send(transactions.end(node, sid))
        return
    if state.leaving:
        step.set(life=Life.LEFT)
        if state.lease_id:
            step.act(RevokeLease(state.lease_id))
            step.set(lease_id=0)
        return
    gen = state.view.gen
    if gen is None or gen.value.etcd_cluster_id != state.cluster_id or not acts(state, step.now):
        return
    if not state.lease_id:
        grant(step)
        return
    timing = state.config.timing
    record = SessionRecord(state.lease_id, state.boot_id, 0, timing.span_s, state.applied_rev)
    step.send(transactions.session(node, record, gen.value), gen=gen.value)


def _asking(state: Leadership) -> bool:
    return any(pending.kind in (Kind.END, Kind.SESSION) for pending in state.pending.values())


def on_session(step: Step, pending: Pending, event: Answered) -> None:
    """Opens the session that was committed. One whose deadline has passed meanwhile never opens: it is ended as any other."""
    state = step.state
    timing = state.config.timing
    sent_at = counted_from(pending, step.now)
    if event.outcome is not Outcome.COMMITTED or event.header is None or state.session is not None:
        return
    gen = pending.gen
    assert gen is not None
    if step.now >= timing.hard_at(sent_at) or state.leaving or gen.etcd_cluster_id != state.cluster_id:
        return
    session = Session(event.header.rev, gen, timing.soft_at(sent_at), timing.hard_at(sent_at), sent_at + timing.beat_s)
    # Tokens that were over belong to former sessions; after a restored etcd even the revisions begin anew.
    step.set(life=Life.OPEN, session=session, gen=gen.gen, next_read_at=step.now, ended={})
    step.remember()
    step.show()
    step.act(SessionOpened(session.sid))


def leave(step: Step) -> None:
    """Once nothing is led any more, the session ends for good."""
    state = step.state
    if state.leaving and state.session is not None and not state.terms and not state.unproven:
        over(step, Ended.LEFT)


# --- the lease, which publishes and nothing else


def grant(step: Step) -> None:
    if not step.state.granting and step.now >= step.state.retry_at:
        step.set(granting=True)
        step.act(GrantLease(step.state.config.timing.lease_ttl_s))


def lose_lease(step: Step, lease_id: int) -> None:
    if lease_id == step.state.lease_id:
        step.set(lease_id=0)
        step.look = True


# --- is this the etcd that we knew


def admit(step: Step, header: Header | None, least: int) -> bool:
    """Whether an answer may be believed. `least`: the highest revision seen when it was asked for; of a write, one more.

    Limit: a node that was away since before a backup cannot notice that revisions went back to it under the same cluster id.
    `etcdctl snapshot restore` with a fresh token gives a new id, which every node notices.
    """
    state = step.state
    if header is None:
        return True
    if state.restored:
        return False
    if header.rev < least or (state.cluster_id and header.cluster_id != state.cluster_id):
        _distrust(step)
        return False
    if not state.cluster_id or header.rev > state.highest:
        step.set(cluster_id=header.cluster_id, highest=max(state.highest, header.rev))
    return True


def _distrust(step: Step) -> None:
    for pending in step.state.pending.values():
        if pending.kind is Kind.PROPOSAL:
            step.act(Proposed(pending.proposal, Outcome.UNKNOWN, 0))
    if step.state.session is not None:
        over(step, Ended.RESTORED)
    # Nothing is owed to the old view or to answers that are still under way.
    reads = {id_: one for id_, one in step.state.pending.items() if one.kind is None}
    step.set(restored=True, viewed=False, own_rev=0, pending=reads)
    step.remember()  # the next process may not be able to see it any more
    step.act(Alarm(f"{Ended.RESTORED}; {RESTORED_HINT}"))


def accept_restored(step: Step, header: Header, gen: GenRecord | None) -> bool:
    """Ends the distrust once an operator has written a new `gen` that names the etcd which answers."""
    state = step.state
    if gen is None or gen.etcd_cluster_id != header.cluster_id or gen.gen <= state.gen:
        return False
    step.set(restored=False, cluster_id=header.cluster_id, highest=header.rev, gen=gen.gen)
    return True


def check(step: Step) -> None:
    """The view must still have this very session, under this very gen."""
    state = step.state
    session, view = state.session, state.view
    if session is None or view.rev < session.sid:
        return
    if view.gen is None or view.gen.value != session.gen:
        over(step, Ended.OTHER_GEN)
    elif view.sid(state.config.node) != session.sid:
        over(step, Ended.SESSION_GONE)

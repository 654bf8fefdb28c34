"""One node's whole leadership life as a pure function: `step(state, event, now) -> (state, actions)`.

No I/O, no clock, no log, no chance: `now` is CLOCK_BOOTTIME as it was read *after* the event had arrived. `Leadership` (state)
states what is always true, and of two changes which must come first.

For the driver
==============
It owns the bus, the page, etcd's channels and a file in `state_dir`. It feeds events one at a time and executes the actions of
a step before it feeds the next event.

*Executing.* In the order of the list, each done before the next begins; `Send`, `Read`, `GrantLease`, `RevokeLease` and
`Prove` are only begun. `Remember` is synced, file and folder, when it is done. If the page refuses a `WritePage`
(`ValueError`), a deadline had passed in between, and guards have acted on it: the rest of the list is done, for the gate is
shut, and `PageRefused` is the next event. An error anywhere else, and any doubt whether an action was done, ends the process;
the next one begins with what is on the page and on the disk.

*Beginning.* `Leadership(Config(...))`, then `Started` with the page and the memory that lie there, `running` from the leash
table and from persistence. The lease that an adopted page names is kept alive like one that was granted.

*Etcd.* Every `Send` and every `Read` is one try at one endpoint, and gets its `Answered` or `ReadAnswered` after the timeout
at the latest: `UNKNOWN` when there was no answer; REFUSED only when etcd itself says that a compare failed; NO_LEASE when it
says that a lease is not found. The core tries again, so the driver must not, but turns to the next endpoint. The watch begins
at the revision of the first read + 1, without fragments; each response is one `Watched` whose `after` is the revision up to
which everything was delivered before. A stream that breaks goes on from there; one that was compacted away, or broke in
doubt, just goes on from the present: the core reads the whole prefix each second and ignores what has a gap. Headers are
passed on as they came, `Overheard` those of answers to others: the core alone judges whether this is the etcd that it knew.
`at_ms` fields are filled with wall clock while encoding.

*Proofs.* `Prove` is begun after the page shows the term closing or gone, which the order of the list sees to. `Stopped` says:
every container of the resource in the leash table is `proven_dead`, and (kernel) persistence has no write in flight. Whatever
starts later than that look finds the gate shut. Doubt is silence. `Stopped` of an earlier `Prove` says nothing for a later
one.

*Time.* `Tick` at `wake_at(state)`, and before any other event once the last is 0.1 s old. `supervisor_at` is read anew for
each.

*What is where.* On the page: the session and its terms; in `state_dir`: `Memory`; the rest is forgotten by a restart, and found
again in etcd. Requests from above (`Campaign`, `Members`, `Pause`, a `Switchover`'s cancel) are repeated by those who
made them. `Opened` and `Closing` are repeated after a restart for what the page holds. They are hints, as all events are: who
acts reads the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from piccolod.leadership import events, session, takeover, terms, view
from piccolod.leadership.actions import Action, Ended
from piccolod.leadership.events import Event
from piccolod.leadership.roles import Reason
from piccolod.leadership.state import Leadership, Life, Step, Want
from piccolod.leadership.timing import POLL_S
from piccolod.leadership.transactions import Kind, Outcome

_NEVER: Final = float("inf")


def step(state: Leadership, event: Event, now: float) -> tuple[Leadership, tuple[Action, ...]]:
    """The state after the event, and what must be done.

    A deadline that has passed ends the session before the event is believed: nothing revives it.
    """
    under_way = Step(state, now)
    current = state.session
    if current is not None and now >= current.hard_at and not state.alone:
        session.over(under_way, Ended.DEADLINE)
    _HANDLERS[type(event)](under_way, event)
    _go_on(under_way)
    return under_way.result()


def wake_at(state: Leadership) -> float:
    """When the next `Tick` is due if nothing else happens."""
    if state.life is Life.LEFT:
        return _NEVER
    at = min(state.look_at, state.next_read_at if not state.reading else _NEVER)
    current = state.session
    if current is not None:
        at = min(at, _NEVER if state.alone else current.hard_at, _NEVER if current.beating else current.next_beat_at)
    return at


# --- after each event


def _go_on(step: Step) -> None:
    """Whatever is due. All resources are looked at only if something other than heartbeats has changed, or a time has come."""
    if step.state.life is Life.LEFT:
        return
    _read(step)
    session.beat(step)
    state = step.state
    if step.look or state.looked != state.view.shape or step.now >= state.look_at:
        step.set(look_at=_look(step))
        step.set(looked=step.state.view.shape if step.state.settled else -1)


def _look(step: Step) -> float:
    """One look at everything; returns when the next is due."""
    due_at = _NEVER
    if step.state.restored:
        return due_at
    if step.state.session is not None and step.state.settled:
        session.check(step)
    if step.state.leaving:
        terms.leave(step)
    if step.state.session is not None:
        if step.state.settled:
            terms.check(step)
            terms.adopt(step)
            takeover.acknowledge(step)
        terms.drive(step)
        session.leave(step)
    if step.state.session is not None and step.state.settled:
        takeover.record(step)
        due_at = min(takeover.expire(step), takeover.claim(step))
    if step.state.session is None:
        session.reopen(step)
    state = step.state
    retry_at = state.retry_at if state.retry_at > step.now else _NEVER
    give_up_at = min((term.give_up_at for term in state.terms.values() if term.give_up_at > step.now), default=_NEVER)
    poll_at = _NEVER if state.session is not None else step.now + state.config.timing.retry_s
    return min(due_at, retry_at, give_up_at, poll_at)


def _read(step: Step) -> None:
    """A watch is a hint: the whole prefix is read again each second."""
    state = step.state
    if not state.reading and step.now >= state.next_read_at:
        step.set(reading=True, next_read_at=step.now + POLL_S)
        step.read()


# --- what etcd says


def _on_answered(step: Step, event: events.Answered) -> None:
    state = step.state
    pending = state.pending.get(event.id)
    if pending is None:
        return  # of before etcd was restored
    step.set(pending={id_: one for id_, one in state.pending.items() if id_ != event.id})
    # A write of ours makes a revision; a proposal may delete what is gone already, which makes none.
    wrote = event.outcome is Outcome.COMMITTED and pending.kind is not Kind.PROPOSAL
    if not session.admit(step, event.header, pending.highest + wrote):
        if pending.kind is Kind.PROPOSAL:
            terms.on_proposed(step, pending, events.Answered(event.id, Outcome.UNKNOWN, None))
        return
    kind = pending.kind
    if kind is Kind.HEARTBEAT:
        if event.outcome is Outcome.REFUSED and event.header is not None:
            step.set(own_rev=max(step.state.own_rev, event.header.rev))
        session.on_heartbeat(step, pending, event)
        return
    if kind is Kind.PROPOSAL and event.outcome is Outcome.COMMITTED:
        terms.on_proposed(step, pending, event)  # it wrote nothing of leadership: nothing is to be looked at
        return
    step.look = True
    if event.header is not None:
        step.set(own_rev=max(step.state.own_rev, event.header.rev))
    if event.outcome is Outcome.NO_LEASE:
        step.set(lease_id=0)
    if event.outcome is Outcome.REFUSED and kind is not Kind.PROPOSAL:
        step.set(next_read_at=step.now)  # the view was wrong: a watch may have lost what it does not know of
    if event.outcome in (Outcome.UNKNOWN, Outcome.NO_LEASE) and kind is not Kind.PROPOSAL:
        step.set(retry_at=step.now + state.config.timing.retry_s)
    if kind is Kind.SESSION:
        session.on_session(step, pending, event)
    elif kind is Kind.CLAIM:
        takeover.on_claim(step, pending, event)
    elif kind is Kind.ACK:
        takeover.on_ack(step, pending, event)
    elif kind is Kind.PROPOSAL:
        terms.on_proposed(step, pending, event)
    elif kind in (Kind.RELEASE, Kind.INTENT, Kind.HANDOVER, Kind.ABORT):
        terms.on_answer(step, pending, event.id, event)


def _on_read(step: Step, event: events.ReadAnswered) -> None:
    state = step.state
    pending = state.pending.get(event.id)
    step.set(reading=False, pending={id_: one for id_, one in state.pending.items() if id_ != event.id})
    if event.header is None or pending is None:
        return
    shape = state.view.shape
    found = view.read(event.header.rev, event.records, shape)
    if step.state.restored:
        if not session.accept_restored(step, event.header, found.gen.value if found.gen is not None else None):
            return
    elif not session.admit(step, event.header, pending.highest) or (state.viewed and found.rev < state.view.rev):
        return
    if not (state.viewed and view.same_shape(state.view, found)):
        found = msgspec.structs.replace(found, shape=shape + 1)
    step.set(viewed=True, read_rev=found.rev)
    step.look = True
    takeover.look(step, found)


def _on_watched(step: Step, event: events.Watched) -> None:
    state = step.state
    if not state.viewed or event.header.cluster_id != state.cluster_id or not session.admit(step, event.header, 0):
        return
    newer = view.advance(state.view, event.after, event.header.rev, event.changes)
    if newer is None:
        step.set(next_read_at=min(state.next_read_at, step.now))
    elif newer is not state.view:
        takeover.look(step, newer)


def _on_overheard(step: Step, event: events.Overheard) -> None:
    session.admit(step, event.header, event.least)


def _on_lease_granted(step: Step, event: events.LeaseGranted) -> None:
    retry_at = step.now + step.state.config.timing.retry_s if not event.lease_id else step.state.retry_at
    step.set(granting=False, lease_id=event.lease_id or step.state.lease_id, retry_at=retry_at)
    if event.lease_id and step.state.session is not None:
        step.show()
        step.set_session(next_beat_at=step.now)
    step.look = True


# --- what the node and those above say


def _on_tick(step: Step, event: events.Tick) -> None:
    step.set(supervisor_at=event.supervisor_at)


def _on_page_refused(step: Step, event: events.PageRefused) -> None:
    if step.state.session is not None:
        session.over(step, Ended.PAGE_REFUSED)


def _on_campaign(step: Step, event: events.Campaign) -> None:
    step.set(wants={**step.state.wants, event.resource: Want(event.reason, event.delay_s)})


def _on_campaigns(step: Step, event: events.Campaigns) -> None:
    kept = {name: want for name, want in step.state.wants.items() if name not in event.withdrawn}
    step.set(wants={**kept, **{name: Want(Reason.BOOTSTRAP, delay_s) for name, delay_s in event.delays.items()}})


def _on_withdraw(step: Step, event: events.Withdraw) -> None:
    step.set(wants={name: want for name, want in step.state.wants.items() if name != event.resource})


def _on_leave(step: Step, event: events.Leave) -> None:
    step.set(leaving=True)


def _looked_at(handler: Callable[[Step, Any], None]) -> Callable[[Step, Any], None]:
    """The handler, and a look at everything afterwards."""

    def handle(step: Step, event: Any) -> None:
        step.look = True
        handler(step, event)

    return handle


_HANDLERS: Final[Mapping[type, Callable[[Step, Any], None]]] = {
    events.Answered: _on_answered,
    events.ReadAnswered: _on_read,
    events.Watched: _on_watched,
    events.Overheard: _on_overheard,
    events.Tick: _on_tick,
    events.Applied: lambda step, event: step.set(applied_rev=event.rev),
    events.Started: _looked_at(session.start),
    events.PageRefused: _looked_at(_on_page_refused),
    events.Stopped: _looked_at(terms.on_stopped),
    events.LeaseGranted: _on_lease_granted,
    events.LeaseLost: _looked_at(lambda step, event: session.lose_lease(step, event.lease_id)),
    events.Members: _looked_at(lambda step, event: step.set(members=event.nodes)),
    events.Campaign: _looked_at(_on_campaign),
    events.Campaigns: _looked_at(_on_campaigns),
    events.Withdraw: _looked_at(_on_withdraw),
    events.Close: _looked_at(terms.on_close),
    events.Release: _looked_at(terms.on_release),
    events.Switchover: _looked_at(terms.on_switchover),
    events.CancelSwitchover: _looked_at(terms.on_cancel),
    events.Propose: terms.on_propose,
    events.Pause: _looked_at(lambda step, event: step.set(paused=event.on)),
    events.Leave: _looked_at(_on_leave),
}

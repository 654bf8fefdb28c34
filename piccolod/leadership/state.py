"""The state of one node's leadership, frozen; and one step that is under way from a state to the next."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

import msgspec

from piccolod import clock
from piccolod.leadership.actions import Action, Prove, Read, Remember, Send, WritePage
from piccolod.leadership.events import Memory, PageState, PageTerm
from piccolod.leadership.keys import GenRecord
from piccolod.leadership.roles import Reason
from piccolod.leadership.timing import SUPERVISOR_STALE_S, Timing
from piccolod.leadership.transactions import Claimed, Kind, Transaction
from piccolod.leadership.view import View

_EMPTY: Final[Mapping[Any, Any]] = MappingProxyType({})


class Config(msgspec.Struct, frozen=True):
    """What never changes while the process lives."""

    node: str
    address: str
    timing: Timing


class Life(StrEnum):
    OVER = "over"  # no session: what ran is being proven stopped, then an old record is ended, then a new one begins
    OPEN = "open"
    LEFT = "left"


class Session(msgspec.Struct, frozen=True):
    """Both deadlines count from the send of the last committed heartbeat."""

    sid: int
    gen: GenRecord
    soft_at: float
    hard_at: float
    next_beat_at: float
    beating: bool = False
    seq: int = 0
    resumed: bool = False  # begun by a process before this one
    asked_ack: bool = False


class Phase(StrEnum):
    OPEN = "open"
    CLOSING = "closing"  # so on the page; not proven stopped yet
    STOPPED = "stopped"  # closing, and nothing of it lives


class Goal(StrEnum):
    """What becomes of a term."""

    HOLD = "hold"
    RELEASE = "release"
    HANDOVER = "handover"
    ABORT = "abort"  # a handover is taken back


class Term(msgspec.Struct, frozen=True):
    """A term that is on this node's page.

    `reason` is why it began, `ending` why it ends. `dead`: its token may be in a RELEASE, so it never opens again.
    """

    resource: str
    token: int
    epoch: int
    reason: Reason
    ending: Reason = Reason.RELEASED
    phase: Phase = Phase.OPEN
    goal: Goal = Goal.HOLD
    dead: bool = False
    proof: int = 0
    pending: int = 0
    closing_at: float = 0.0
    intent_mod: int = 0
    to: str = ""
    address: str = ""
    op: str = ""
    give_up_at: float = 0.0


class Want(msgspec.Struct, frozen=True):
    reason: Reason
    delay_s: float


class Seen(msgspec.Struct, frozen=True):
    """When this node saw the session change last, on its own clock; once it is gone, for how long it had been silent.

    `asked_s`: how long it had been silent when this node first sent EXPIRE; 0: it did not.
    """

    mod: int
    at: float
    silent_s: float = 0.0
    asked_s: float = 0.0


class Offer(msgspec.Struct, frozen=True):
    """A term that its holder means to hand over to this node: its epoch, and since when that was seen."""

    epoch: int
    since: float


class Pending(msgspec.Struct, frozen=True):
    """A transaction or read without an answer yet. `highest` was the highest revision seen when it was sent."""

    kind: Kind | None
    sent_at: float
    highest: int
    sid: int
    resource: str = ""
    claims: tuple[Claimed, ...] = ()
    gen: GenRecord | None = None
    others: bool = False  # an ACK that names somebody else
    proposal: int = 0


class Leadership(msgspec.Struct, frozen=True):
    """All that one node's core knows.

    Invariants:

    1. A term is on the page only while its token is the newest in etcd, as far as committed transactions of this node can
       tell, and only under deadlines that count from the send of a heartbeat that etcd has committed.
    2. While etcd says that this node holds a resource, either the page says so too, or nothing of it lives here.

    So of two changes that belong together, the one that lets *less* happen comes first. A term opens in etcd first and on the
    page second: a crash between leaves it led by nobody for a moment. It closes on the page first, then is proven stopped, then
    ends in etcd, then leaves the page: another order has two actors from the commit in etcd until the last effect has died.
    A session leaves the page first, then all its effects are proven stopped, then it ends in etcd, then the next one begins.
    Deadlines appear on the page before anyone is acknowledged as a taker; they go only after the list without takers is
    committed. What etcd is, and how far it had come, is on the disk before a term opens, so that no crash forgets it.
    """

    config: Config
    boot_id: str = ""
    life: Life = Life.OVER
    session: Session | None = None
    alone: bool = False  # nobody may take over, so deadlines do not run
    growing: bool = False  # a list with takers was sent, or is about to be
    lease_id: int = 0
    granting: bool = False
    view: View = View()
    viewed: bool = False  # the view holds a linearizable read of this process
    read_rev: int = 0  # of the last linearizable read; the view may be beyond it by what a watch said
    own_rev: int = 0  # of this node's last transaction that was answered: an older view decides nothing
    cluster_id: int = 0
    highest: int = 0
    gen: int = 0
    remembered: Memory | None = None
    restored: bool = False
    seen: Mapping[str, Seen] = _EMPTY
    terms: Mapping[str, Term] = _EMPTY
    ended: Mapping[str, int] = _EMPTY  # in this session: the last token of each resource that was over
    unproven: Mapping[int, str] = _EMPTY  # by the id of their `Prove`
    wants: Mapping[str, Want] = _EMPTY
    vacant: Mapping[str, float] = _EMPTY  # since when seen
    offered: Mapping[str, Offer] = _EMPTY
    pending: Mapping[int, Pending] = _EMPTY
    next_id: int = 1
    supervisor_at: float = float("-inf")
    members: frozenset[str] | None = None
    applied_rev: int = 0
    paused: bool = False
    leaving: bool = False
    reading: bool = False
    next_read_at: float = float("-inf")
    retry_at: float = float("-inf")
    looked: int = -1  # the view's shape at the last whole look
    look_at: float = float("-inf")  # the next whole look, if nothing happens

    @property
    def exact(self) -> bool:
        """The view is a linearizable read itself: not even a watch that loses things has touched it."""
        return self.viewed and self.view.rev == self.read_rev

    @property
    def settled(self) -> bool:
        """The view may be decided upon."""
        return self.viewed and self.view.rev >= self.own_rev


class Step:
    """One step under way: replaces parts of the state and gathers actions, of which the page's come first."""

    __slots__ = ("_actions", "_page_changed", "_remember", "look", "now", "state")

    def __init__(self, state: Leadership, now: float) -> None:
        self.state = state
        self.now = now
        self.look = False
        self._actions: list[Action] = []
        self._page_changed = False
        self._remember = False

    def set(self, **changes: Any) -> None:
        self.state = msgspec.structs.replace(self.state, **changes)

    def set_session(self, **changes: Any) -> None:
        assert self.state.session is not None
        self.set(session=msgspec.structs.replace(self.state.session, **changes))

    def set_term(self, term: Term, **changes: Any) -> Term:
        term = msgspec.structs.replace(term, **changes)
        self.set(terms={**self.state.terms, term.resource: term})
        return term

    def act(self, action: Action) -> None:
        self._actions.append(action)

    def show(self) -> None:
        """The page must follow, before every other action of this step."""
        self._page_changed = True

    def remember(self) -> None:
        """What was seen of etcd must be on the disk before even the page."""
        self._remember = True

    def send(self, transaction: Transaction, **about: Any) -> int:
        id_ = self._pend(transaction.kind, **about)
        self.act(Send(id_, transaction, self.state.config.timing.rpc_s))
        return id_

    def read(self) -> None:
        id_ = self._pend(None)
        self.act(Read(id_, self.state.config.timing.rpc_s))

    def prove(self, resource: str, token: int) -> int:
        id_ = self.state.next_id
        self.set(next_id=id_ + 1)
        self.act(Prove(id_, resource, token))
        return id_

    def result(self) -> tuple[Leadership, tuple[Action, ...]]:
        first: list[Action] = []
        if self._remember:
            state = self.state
            memory = Memory(state.cluster_id, state.highest, state.gen, state.restored)
            self.set(remembered=memory)
            first.append(Remember(memory))
        if self._page_changed:
            first.append(WritePage(page_of(self.state)))
        return self.state, (*first, *self._actions)

    def _pend(self, kind: Kind | None, **about: Any) -> int:
        state = self.state
        session = state.session
        pending = Pending(kind, self.now, state.highest, session.sid if session is not None else 0, **about)
        self.set(next_id=state.next_id + 1, pending={**state.pending, state.next_id: pending})
        return state.next_id


def page_of(state: Leadership) -> PageState:
    """What the page has to show. Without a session it shows no term and a deadline that has passed."""
    session = state.session
    if session is None:
        return PageState(state.gen, 0, 0, 0.0, 0.0, {})
    soft_at, hard_at = (clock.FOREVER, clock.FOREVER) if state.alone else (session.soft_at, session.hard_at)
    terms = {name: PageTerm(term.token, term.epoch, shown_closing(term)) for name, term in state.terms.items()}
    return PageState(session.gen.gen, session.sid, state.lease_id, soft_at, hard_at, terms)


def shown_closing(term: Term) -> bool:
    return term.phase is not Phase.OPEN


def acts(state: Leadership, now: float) -> bool:
    """The supervisor is known to act. A node that cannot act must not lead."""
    return now - state.supervisor_at <= SUPERVISOR_STALE_S

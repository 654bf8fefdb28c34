"""One core on a bench: a store beside it, a clock in the hand, every answer given or held back by the test."""

from __future__ import annotations

from typing import TypeVar

from piccolod.leadership import core, events, transactions, view
from piccolod.leadership.actions import Action, GrantLease, Prove, Read, Send, WritePage
from piccolod.leadership.events import Answered, Event, Memory, PageState
from piccolod.leadership.keys import SessionRecord
from piccolod.leadership.roles import Reason
from piccolod.leadership.state import Config, Leadership
from piccolod.leadership.timing import FAST
from piccolod.leadership.transactions import Claimed, Kind, Outcome
from tests.sim.store import Store
from tests.sim.world import World

A = TypeVar("A")
ANSWERED = (Send, Read, GrantLease, Prove)


def new_store() -> Store:
    return Store(World(0), FAST.election_s)


class Bench:
    """`done` is every action so far; those that want an answer wait in `open` until the test gives it."""

    def __init__(self, store: Store | None = None, node: str = "a", *, members: tuple[str, ...] = ("a", "b")) -> None:
        self.store = store or new_store()
        self.now = 100.0
        self.state = Leadership(Config(node, f"at-{node}", FAST))
        self.supervisor_acts = True
        self.members = members
        self.done: list[Action] = []
        self.open: list[Action] = []

    def start(self, page: PageState | None = None, memory: Memory | None = None, running: tuple[str, ...] = ()) -> Bench:
        self.feed(events.Started("boot", page, memory, running))
        self.tick()
        self.feed(events.Members(frozenset(self.members)))
        return self

    def restart(self) -> None:
        """The process dies; the next finds the page and the memory. What was open is answered to nobody."""
        page, memory, terms = self.page, self.state.remembered, tuple(self.page.terms)
        self.open.clear()
        self.state = Leadership(self.state.config)
        self.start(page, memory, terms)

    def lead(self, *resources: str) -> Bench:
        self.start().settle()
        for resource in resources:
            self.feed(events.Campaign(resource))
        self.settle()
        assert set(resources) <= set(self.state.terms)
        return self

    # --- feeding

    def feed(self, event: Event) -> list[Action]:
        before = self.state
        self.state, due = core.step(before, event, self.now)
        self.done += due
        self.open += [action for action in due if isinstance(action, ANSWERED)]
        return list(due)

    def tick(self) -> list[Action]:
        return self.feed(events.Tick(self.now if self.supervisor_acts else self.now - 1.0))

    def pass_time(self, for_s: float) -> None:
        """Time passes; the core is woken whenever it wants, and nothing is answered."""
        until = self.now + for_s
        while (wake_at := core.wake_at(self.state)) <= until:
            self.now = max(self.now, wake_at)
            self.tick()
            assert core.wake_at(self.state) > self.now, "it spins"
        self.now = until
        self.tick()

    def live(self, for_s: float, *, proofs: bool = True) -> None:
        """Time passes, and everything is answered at once."""
        until = self.now + for_s
        while (wake_at := core.wake_at(self.state)) <= until:
            self.now = max(self.now, wake_at)
            self.tick()
            self.settle(proofs=proofs)
        self.now = until
        self.tick()
        self.settle(proofs=proofs)

    # --- answering

    def settle(self, *, proofs: bool = True) -> None:
        """Answers all that is open, in order, and delivers what the watch has, until nothing more comes."""
        while True:
            waiting = [action for action in self.open if proofs or not isinstance(action, Prove)]
            for action in waiting:
                self.answer(action)
            if not waiting and not self.watch():
                return

    def answer(self, action: Action) -> list[Action]:
        self.open.remove(action)
        match action:
            case Send():
                outcome = self.store.commit(action.transaction)
                return self.feed(Answered(action.id, outcome, self.store.header))
            case Read():
                return self.feed(events.ReadAnswered(action.id, self.store.header, self.store.read()))
            case GrantLease():
                return self.feed(events.LeaseGranted(self.store.grant(action.ttl_s)))
            case Prove():
                return self.feed(events.Stopped(action.id))
        raise AssertionError(action)

    def lose_answer(self, send: Send, *, commits: bool) -> list[Action]:
        self.open.remove(send)
        if commits:
            self.store.commit(send.transaction)
        return self.feed(Answered(send.id, Outcome.UNKNOWN, None))

    def watch(self) -> bool:
        seen = self.state.view.rev
        if seen >= self.store.rev or not self.state.viewed:
            return False
        self.feed(events.Watched(seen, self.store.header, self.store.since(seen)))
        return self.state.view.rev > seen

    def settle_until(self, kind: Kind) -> None:
        """Answers what is open until a transaction of that kind waits."""
        while not self.sends(kind):
            if self.open:
                self.answer(self.open[0])
            else:
                assert self.watch(), f"nothing leads to {kind}"

    def store_end(self) -> transactions.Transaction:
        return transactions.end(self.state.config.node, self.page.sid)

    # --- looking

    @property
    def page(self) -> PageState:
        return self.last(WritePage).page

    def last(self, kind: type[A]) -> A:
        return next(action for action in reversed(self.done) if isinstance(action, kind))

    def all(self, kind: type[A]) -> list[A]:
        return [action for action in self.done if isinstance(action, kind)]

    def sent(self, kind: Kind) -> Send:
        """The transaction that waits for its answer."""
        return next(action for action in reversed(self.open) if isinstance(action, Send) and action.transaction.kind is kind)

    def sends(self, kind: Kind) -> bool:
        return any(isinstance(action, Send) and action.transaction.kind is kind for action in self.open)

    def proof(self) -> Prove:
        return next(action for action in reversed(self.open) if isinstance(action, Prove))

    def token(self, resource: str) -> int:
        return self.state.terms[resource].token


class Other:
    """Another node, by its transactions alone."""

    def __init__(self, store: Store, node: str = "b", *, acks: tuple[str, ...] = ("a", "b")) -> None:
        self.store = store
        self.node = node
        self.lease = store.grant(100)
        self.gen = store.records["gen"].value
        self.sid = self._commit(transactions.session(node, self._record(), self.gen))
        self._commit(transactions.ack(node, self.sid, 0, acks))

    def beat(self) -> None:
        self._commit(transactions.heartbeat(self.node, self.sid, self._record(), self.gen))

    def claim(self, *resources: str) -> int:
        seen = view.read(self.store.rev, self.store.read())
        claims = [
            Claimed(name, seen.epochs[name].value.epoch + 1 if name in seen.epochs else 1, Reason.EXPIRED) for name in resources
        ]
        return self._commit(transactions.claim(self.node, "at-b", self.sid, self.lease, 3.0, self.gen, seen, claims))

    def end(self) -> None:
        self._commit(transactions.end(self.node, self.sid))

    def _record(self) -> SessionRecord:
        return SessionRecord(self.lease, "boot-b", 0, FAST.span_s)

    def _commit(self, transaction: transactions.Transaction) -> int:
        assert self.store.commit(transaction) is Outcome.COMMITTED
        return self.store.rev


def kinds(done: list[Action]) -> list[str]:
    """What was asked for, in order; transactions by their kind."""
    return [action.transaction.kind.value if isinstance(action, Send) else type(action).__name__ for action in done]

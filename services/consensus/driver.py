"""Drives the leadership core against real etcd, the page and the disk, as the core's docstring asks of a driver.

One event at a time: its actions are done in their order before the next is fed. What they begin (transactions, reads, proofs)
runs in tasks that feed an event when it ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any, Final, Protocol

from piccolod import clock
from piccolod.errors import PiccoloError
from piccolod.leadership import actions, core, events
from piccolod.leadership.actions import Action
from piccolod.leadership.events import Event, Header, Memory, PageState
from piccolod.leadership.page import Page, Term
from piccolod.leadership.state import Config, Leadership
from piccolod.leadership.timing import POLL_S
from piccolod.leadership.transactions import Kind, Outcome, Transaction
from services.consensus.etcd import lease
from services.consensus.etcd.failures import LeaseLost
from services.consensus.etcd.watch import Relist, Watch
from services.consensus.etcd_store import Attempt, EtcdStore
from services.consensus.facts import Facts
from services.consensus.memory import MemoryFile
from services.consensus.prover import Prover

_TICK_OLD_S: Final = 0.1
_DISK_AGAIN_S: Final = 0.5
# Timers of the loop may be a little early against BOOTTIME: a wake that comes too soon would spin.
_AFTER_S: Final = 0.0005


class PageFile(Protocol):
    def write(self, page: Page) -> Page: ...


class Driver:
    """`heard(action)` gets what the core tells; `changed()` is called when something may look different now."""

    def __init__(
        self,
        config: Config,
        store: EtcdStore,
        page: PageFile,
        memory: MemoryFile,
        prover: Prover,
        supervisor_at: Callable[[], float],
        log: Any,
        heard: Callable[[Action], None],
        changed: Callable[[], None],
    ) -> None:
        self._core = self.state = Leadership(config)  # `state`: what the page and the disk show already
        self.store = store
        self.facts = Facts()
        self.began_at = clock.FOREVER  # to ask etcd
        self.heard_at = float("-inf")  # when etcd last gave a quorum's answer
        self.owns_name: Callable[[], bool] = lambda: True  # else a session of this node's name is another machine's
        self.succeeded_by = ""  # the member on which the cluster was begun anew, without this node
        self.blocked = ""  # why nothing goes on: the disk
        self._page = page
        self._memory = memory
        self._prover = prover
        self._supervisor_at = supervisor_at
        self._log = log
        self._heard = heard
        self._changed = changed
        self._boot_id = clock.boot_id()
        self._events: deque[Event] = deque()
        self._actions: deque[Action] = deque()
        self._busy = True  # until it runs
        self._refused = False
        self._quiet = False
        self._ticked_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[tuple[Callable[[], Any], asyncio.Future[None]]] = []
        self._attempts: dict[int, Attempt] = {}
        self._keeping: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: asyncio.TaskGroup

    async def run(self, first: events.Started) -> None:
        """Until it is cancelled. What goes wrong inside ends the process: the next begins with the page and the disk."""
        self.began_at = clock.now()
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._follow(), name="watch")
            if first.page is not None and first.page.sid and first.page.lease_id:
                self._keep_alive(first.page.lease_id)
            self._busy = False
            self._events.appendleft(first)
            self._pump()
            try:
                await self._failure
            finally:
                self._busy = True
                if self._timer is not None:
                    self._timer.cancel()
                for _, waiter in self._waiters:
                    waiter.cancel()

    def feed(self, event: Event) -> None:
        self._events.append(event)
        self._pump()

    async def until(self, condition: Callable[[], Any], within_s: float | None = None) -> bool:
        """Whether the condition came true in time. It is looked at after each event. None: as long as it takes."""
        if condition():
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((condition, waiter))
        try:
            async with asyncio.timeout(within_s):
                await waiter
            return True
        except TimeoutError:
            return bool(condition())
        finally:
            self._waiters = [each for each in self._waiters if each[1] is not waiter]

    async def put(self, transaction: Transaction) -> Attempt:
        """A write beside the core's. Its answer is judged as those are: it could hide that revisions went back."""
        least = self.state.highest
        done = await self.store.commit(transaction, self.state.config.timing.rpc_s)
        if done.header is not None:
            wrote = done.outcome is Outcome.COMMITTED and bool(transaction.puts)
            self.believes(done.header, least + wrote)
        return done

    def believes(self, header: Header, least: int) -> bool:
        """Whether an answer to something else than the core's may be believed; `least` is of before it was asked."""
        self.feed(events.Overheard(header, least))
        state = self.state
        return not state.restored and header.rev >= least and header.cluster_id == state.cluster_id

    def attempt(self, proposal: int) -> Attempt | None:
        """How the proposal went at etcd, once; None when it was not sent."""
        return self._attempts.pop(proposal, None)

    # --- feeding

    def _pump(self) -> None:
        """Does all that is there to do. Not reentrant; goes on by itself once the disk has taken what it must remember."""
        if self._busy or self._failure.done():
            return
        self._busy = True
        try:
            while True:
                if not self._actions:
                    self.state = self._core
                if self._actions:
                    action = self._actions.popleft()
                    if isinstance(action, actions.Remember):
                        self._tasks.create_task(self._remember(action.memory), name="remember")
                        return
                    self._do(action)
                elif self._refused:
                    self._refused = False
                    self._step(events.PageRefused())
                elif self._events:
                    self._take(self._events.popleft())
                else:
                    break
        except Exception as error:
            self._failure.set_exception(error)
            return
        self._busy = False
        self._schedule()
        self._look()

    def _take(self, event: Event) -> None:
        first = isinstance(event, events.Started | events.Tick)
        if not first and clock.now() - self._ticked_at > _TICK_OLD_S:
            self._events.appendleft(event)
            event = events.Tick(self._supervisor_at())
        if isinstance(event, events.Tick):
            self._ticked_at = clock.now()
        self._step(event)

    def _step(self, event: Event) -> None:
        self._core, due = core.step(self._core, event, clock.now())
        self._actions.extend(due)

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        wake_at = core.wake_at(self._core)
        left_s = max(_AFTER_S, wake_at - clock.now() + _AFTER_S)
        self._timer = None if wake_at == clock.FOREVER else asyncio.get_running_loop().call_later(left_s, self._wake)

    def _wake(self) -> None:
        self.feed(events.Tick(self._supervisor_at()))

    @contextmanager
    def _told_at_once(self) -> Iterator[None]:
        """What one revision did to the view and to the facts is one change for who is told."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False
        self._look()

    def _look(self) -> None:
        if self._quiet:
            return
        self._changed()
        for condition, waiter in self._waiters:
            if not waiter.done() and condition():
                waiter.set_result(None)

    # --- doing

    def _do(self, action: Action) -> None:
        if isinstance(action, actions.WritePage):
            self._write_page(action.page)
        elif isinstance(action, actions.Send):
            self._tasks.create_task(self._send(action), name="transaction")
        elif isinstance(action, actions.Read):
            self._tasks.create_task(self._read(action), name="read")
        elif isinstance(action, actions.Prove):
            self._tasks.create_task(self._prove(action), name="proof")
        elif isinstance(action, actions.GrantLease):
            self._tasks.create_task(self._grant(action.ttl_s), name="lease")
        elif isinstance(action, actions.RevokeLease):
            self._tasks.create_task(self._revoke(action.lease_id), name="lease")
        else:
            self._heard(action)

    def _write_page(self, state: PageState) -> None:
        terms = {name: Term(term.token, term.epoch, term.closing) for name, term in state.terms.items()}
        page = Page(0, state.gen, state.sid, state.lease_id, self._boot_id, state.soft_at, state.hard_at, terms)
        try:
            self._page.write(page)
        except ValueError as error:
            self._log.warning("the page took no later deadline", reason=str(error))
            self._refused = True

    async def _remember(self, memory: Memory) -> None:
        """A disk that does not take it holds everything up: the deadlines pass then, and others lead."""
        while True:
            try:
                await asyncio.to_thread(self._memory.write, memory)
                break
            except OSError as error:
                if not self.blocked:
                    self._log.error("cannot remember what was seen of etcd: nothing is led before that", reason=str(error))
                self.blocked = f"the disk does not take what must be remembered: {error.strerror}"
                self._changed()
                await asyncio.sleep(_DISK_AGAIN_S)
        self.blocked = ""
        self._busy = False
        self._pump()

    async def _send(self, action: actions.Send) -> None:
        if action.transaction.kind is Kind.END and not self.owns_name():
            self.feed(events.Answered(action.id, Outcome.UNKNOWN, None))
            return
        attempt = await self.store.commit(action.transaction, action.timeout_s)
        if attempt.header is not None:
            self.heard_at = clock.now()
        pending = self._core.pending.get(action.id)
        if pending is not None and pending.kind is Kind.PROPOSAL:
            self._attempts[pending.proposal] = attempt
        self.feed(events.Answered(action.id, attempt.outcome, attempt.header))

    async def _read(self, action: actions.Read) -> None:
        try:
            seen = await self.store.read(action.timeout_s)
        except PiccoloError:
            self.feed(events.ReadAnswered(action.id, None, {}))
            return
        self.heard_at = clock.now()
        with self._told_at_once():
            self.feed(events.ReadAnswered(action.id, seen.header, seen.records))
            if self.state.viewed and self.state.read_rev == seen.header.rev:  # it was believed
                self.facts.read(seen.records)

    async def _prove(self, action: actions.Prove) -> None:
        await self._prover.prove(action.resource)
        self.feed(events.Stopped(action.id))

    # --- the lease

    async def _grant(self, ttl_s: int) -> None:
        try:
            granted = await lease.grant(self.store.client, ttl_s)
        except PiccoloError:
            self.feed(events.LeaseGranted(0))
            return
        self._keep_alive(granted.id)
        self.feed(events.LeaseGranted(granted.id))

    def _keep_alive(self, lease_id: int) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        self._keeping = self._tasks.create_task(self._renew(lease_id), name="keep alive")

    async def _renew(self, lease_id: int) -> None:
        keeper = lease.KeepAlive(self.store.client, lease_id)
        every_s = self.state.config.timing.beat_s
        try:
            while True:
                try:
                    await keeper.renew(every_s)
                except LeaseLost:
                    self.feed(events.LeaseLost(lease_id))
                    return
                except PiccoloError:
                    continue
                await asyncio.sleep(every_s)
        finally:
            keeper.close()

    async def _revoke(self, lease_id: int) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        try:
            await lease.revoke(self.store.client, lease_id)
        except PiccoloError:
            return  # it expires

    # --- the watch

    async def _follow(self) -> None:
        """From what was read on; begun anew whenever that is not the etcd any more that was watched."""
        timing = self.state.config.timing
        while True:
            await self.until(self._readable)
            era, after = self.state.cluster_id, self.state.view.rev
            watching = self._tasks.create_task(self._watch(after, 2 * timing.beat_s + timing.rpc_s), name="stream")
            watching.add_done_callback(lambda _: self._look())
            await self.until(partial(self._outdated, watching, era))
            watching.cancel()
            if self.state.restored or self.state.cluster_id != era:
                self.facts.entries.clear()  # those of another etcd
            # The core reads everything each second; what lies between is in that.
            await self.until(partial(self._advanced, after), POLL_S)

    def _outdated(self, watching: asyncio.Task[None], era: int) -> bool:
        return watching.done() or not self._readable() or self.state.cluster_id != era

    def _advanced(self, after: int) -> bool:
        return self.state.restored or self.state.view.rev > after

    def _readable(self) -> bool:
        return self.state.viewed and not self.state.restored

    async def _watch(self, after: int, silence_s: float) -> None:
        watch = Watch(self.store.client, self.store.prefix, after, silence_s)
        async with aclosing(watch.news()) as stream:
            async for news in stream:
                if isinstance(news, Relist):
                    self._log.info("reads etcd again", reason=news.reason)
                    return
                header = Header(watch.cluster_id, news.revision)
                changes = self.store.changes(news)
                with self._told_at_once():
                    self.feed(events.Watched(after, header, changes))
                    after = news.revision
                    if self.state.view.rev == after:  # it was believed
                        self.facts.watched(changes)

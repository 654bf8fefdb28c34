"""The leaser of a member of a cluster: leadership lives in etcd, and this node's part of it in the core that it drives."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from piccolod import clock
from piccolod.cluster_mode import Mode
from piccolod.errors import (
    Busy,
    Conflict,
    LeaderHint,
    NotLeader,
    OutcomeUnknown,
    PiccoloError,
    StoreUnavailable,
    TooMany,
)
from piccolod.leadership import actions, events, keys
from piccolod.leadership.actions import RESTORED_HINT, Action, Ended
from piccolod.leadership.events import Memory, PageState, PageTerm
from piccolod.leadership.page import CAPACITY, Page, PageWriter
from piccolod.leadership.placement import Standing
from piccolod.leadership.records import ChangeRecord, TermRecord
from piccolod.leadership.resources import RESOURCE_KERNEL, app_of, resource_for_app
from piccolod.leadership.roles import Reason
from piccolod.leadership.state import Config, Life, Phase
from piccolod.leadership.transactions import Compare, Outcome, Put
from piccolod.module import Module
from piccolod.protocol.cluster import Draining
from piccolod.protocol.consensus import Candidate
from piccolod.supervisor.rundir import last_tick
from services.consensus import access, cluster_records, history, members_file, placing, prover, standing
from services.consensus.draining import Drainer
from services.consensus.driver import Driver
from services.consensus.etcd_store import Attempt, EtcdStore
from services.consensus.leaser import Place
from services.consensus.memory import MemoryFile
from services.consensus.phases import Phases
from services.consensus.planned_moves import PlannedMoves
from services.consensus.refusals import NO_QUORUM, NO_QUORUM_HINT, Refusals, restored
from services.consensus.registration import Registration
from services.consensus.successor import Seen, Successor

_CAMPAIGN_S: Final = 1.0
_END_S: Final = 4.0  # from a request to end a term until its caller is told that it takes longer
_LEAVE_S: Final = 1.0
_LOOK_S: Final = 0.005
_LEAVE_LOOKS: Final = 200
SUCCESSOR_S: Final = 5.0
_PROPOSAL_S: Final = 5.0
_REFUSED_S: Final = 1.0
_OUT: Final = "this node was taken out of the cluster"
_OUT_HINT: Final = "`piccoloctl cluster leave` makes it a node alone"
_OWNERS_HINT: Final = "the how-to about an etcd that you keep yourself has the way back"


class EtcdLeaser:
    """See `Leaser` for what each method promises. `changed()` is called whenever `records` may be others."""

    def __init__(self, module: Module, page: PageWriter, mode: Mode, changed: Callable[[], None]) -> None:
        """Raises PiccoloError for files of the cluster that cannot be read or are none."""
        self._module = module
        self._page = page
        self._node = mode.node
        self._external = mode.is_external
        paths = module.paths
        timing = members_file.timing_of(paths)
        client = access.open_client(paths, module.config.etcd, mode, timing.rpc_s)
        store = EtcdStore(client, cluster_records.prefix(mode.cluster))
        self.driver: Final = Driver(
            Config(mode.node, module.config.node.address, timing), store, page, MemoryFile(paths.cluster / "seen.json"),
            prover.Prover(paths, module.call, self._store_lives), lambda: last_tick(paths), module.log, self._heard,
            self._looked,
        )  # fmt: skip
        self._successor = Successor(paths, store.prefix)
        self.registration: Final = Registration(self.driver, module, mode, self._store_lives)
        self._refusals = Refusals(self.driver, mode.node, self.place)
        self._moves = PlannedMoves(self.driver, mode.node, self.place, self._refusals, lambda: self.registration.standings)
        self._phases = Phases(self.driver, module.spawn, module.log)
        self._drainer = Drainer(
            self.driver, mode.node, self._moves, self._refusals, lambda: self.registration.standings, module.log
        )
        self._changed = changed
        self._shape: object = None
        self._head: object = None
        self.head_moved: Callable[[], None] = lambda: None  # of the log: with each commit, so nothing else hangs on it
        self._records: Mapping[str, TermRecord] = {}
        self._proposals: dict[int, asyncio.Future[tuple[actions.Proposed, Attempt | None]]] = {}
        self._numbers = itertools.count(1)
        self._running: asyncio.Task[None] | None = None

    async def open(self) -> None:
        module = self._module
        page = self._page.read()
        shown, on_page = None, set()
        if page is not None and page.boot_id == clock.boot_id():
            terms = {name: PageTerm(term.token, term.epoch, term.closing) for name, term in page.terms.items()}
            shown = PageState(page.gen, page.sid, page.lease_id, page.soft_at, page.hard_at, terms)
            on_page = {RESOURCE_KERNEL} & set(terms)
        running = tuple(sorted(on_page | prover.running(module.paths)))
        memory = await self._remembered(resumes=shown is not None and shown.sid != 0 and clock.now() < shown.hard_at)
        first = events.Started(clock.boot_id(), shown, memory, running)
        self._running = module.spawn(self.driver.run(first), name="leadership")
        module.spawn(self.registration.run(), name="registration")
        module.spawn(self._drainer.run(), name="drain")
        module.spawn(self._watch_for_successor(), name="successor")
        await self.driver.until(lambda: self.driver.state.boot_id, _CAMPAIGN_S)

    async def _remembered(self, *, resumes: bool) -> Memory | None:
        """What a former life knew of etcd. A session that lives on was in touch; a new one waits for the others' answers."""
        file = MemoryFile(self._module.paths.cluster / "seen.json")
        memory = file.read()
        if memory is None or memory.restored or resumes:
            return memory
        seen = await self._successor.look(memory)
        if seen is None:
            return memory
        self._note_successor(seen)
        memory = msgspec.structs.replace(memory, restored=True)
        await asyncio.to_thread(file.write, memory)
        return memory

    async def _watch_for_successor(self) -> None:
        while True:
            state = self.driver.state
            known = Memory(state.cluster_id, state.highest, state.gen, state.restored)
            if (seen := await self._successor.look(known)) is not None:
                self._note_successor(seen)
                self.driver.feed(events.Overheard(seen.header, 0))
            await asyncio.sleep(SUCCESSOR_S)

    def _note_successor(self, seen: Seen) -> None:
        if self.driver.succeeded_by != seen.node:
            self._module.log.error("the cluster was recovered without this node", on=seen.node)
        self.driver.succeeded_by = seen.node

    async def leave(self) -> None:
        """The kernel, once persistence has ended: others need not wait for a span then. A term of an app ends with the app."""
        driver = self.driver
        term = driver.state.terms.get(RESOURCE_KERNEL)
        if term is None or not standing.best_candidate(driver.state, driver.facts):
            return
        for _ in range(_LEAVE_LOOKS):
            if not self._store_lives():
                self.registration.forget(RESOURCE_KERNEL)
                driver.feed(events.Release(RESOURCE_KERNEL, term.token, Reason.DRAIN))
                await driver.until(lambda: not self._holds(RESOURCE_KERNEL, term.token), _LEAVE_S)
                return
            await asyncio.sleep(_LOOK_S)

    async def retire(self) -> bool:
        """Ends every term here once it is proven stopped, then the session, for good. Whether all that is done in time."""
        self.driver.feed(events.Leave())
        return await self.driver.until(self._has_retired, _END_S)

    def _has_retired(self) -> bool:
        """Where etcd is not believed, or the name is another machine's, no session in it is ours to end."""
        state = self.driver.state
        stopped = state.session is None and not state.unproven
        return state.life is Life.LEFT or (stopped and (state.restored or self.registration.is_replaced()))

    async def abandon(self) -> None:
        """Leads nothing from now on, whatever etcd says. Only once nothing that was led here lives."""
        await self.end()
        page = self._page.read()
        self._page.write(Page(0, page.gen if page is not None else 0, 0, 0, clock.boot_id(), 0.0, 0.0, {}))

    async def end(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait((self._running,))
        self.registration.end()
        await self.driver.store.client.close()

    # --- questions

    def records(self) -> Mapping[str, TermRecord]:
        return self._records

    def hard_at(self, record: TermRecord) -> float:
        return standing.hard_at(self.driver.state, record)

    def place(self, node: str) -> Place:
        record = self.driver.facts.nodes.get(node)
        if record is not None:
            return Place(record.address, record.api_url, cluster_records.tunnel_of(record.rpc))
        return Place(self._module.config.node.address if node == self._node else "", "")

    def nodes(self) -> Mapping[str, str]:
        state = self.driver.state
        return {name: standing.silent(state, name, clock.now()) for name in (self.driver.facts.nodes or (self._node,))}

    def candidates(self, resource: str) -> tuple[Candidate, ...]:
        state, facts = self.driver.state, self.driver.facts
        app = app_of(resource)
        if app is None:
            return standing.candidates(state, facts)
        return placing.candidates(state, facts, self.registration.standings, app)

    async def history(self, resource: str | None, limit: int) -> tuple[ChangeRecord, ...]:
        return await history.read(self.driver.store, resource, limit)

    def trouble(self) -> str:
        if self.driver.state.restored:
            found = restored(self.driver)
            if self._external:
                return f"{found.detail}; or [etcd] in the configuration names another one: {_OWNERS_HINT}"
            return f"{found.detail}; {found.hint}"
        if self.driver.blocked:
            return self.driver.blocked
        if self.registration.is_out():
            return f"{_OUT}: {_OUT_HINT}"
        return "" if self._refusals.fresh() else (NO_QUORUM if self._external else f"{NO_QUORUM}; {NO_QUORUM_HINT}")

    def hint(self, resource: str) -> LeaderHint | None:
        return self._refusals.hint(resource)

    # --- terms

    def stand(self, apps: Mapping[str, Standing]) -> None:
        if not self.registration.is_out():
            self.registration.stand(apps)

    def standings(self) -> Mapping[str, Mapping[str, Standing]]:
        """Who is drained could lead nothing."""
        facts = self.driver.facts
        return placing.without_drained(facts, placing.standings_of(self.driver.state, facts, self.registration.standings))

    async def campaign(self, resource: str, reason: Reason) -> TermRecord:
        """Of `kernel` it is a standing wish, for as long as it is asked again; an app stands, and this waits for its end."""
        state = self.driver.state
        self._moves.check_stays(resource)
        if self.registration.is_out():
            self.registration.forget(resource)
            raise NotLeader(_OUT, hint=_OUT_HINT, leader=self.hint(resource))
        term = state.terms.get(resource)
        if term is not None and term.phase is not Phase.OPEN:
            raise Busy(f"epoch {term.epoch} of {resource} is being closed", hint="it can be led again once that is done")
        if self.driver.facts.is_witness(self._node):
            raise NotLeader("a witness votes and leads nothing", leader=self.hint(resource))
        if term is None and len(state.terms) >= CAPACITY:
            raise TooMany(f"this node leads {CAPACITY} resources already", hint="uninstall or stop an app")
        if (app := app_of(resource)) is None:
            self.registration.wish(resource, reason)
        elif term is None:
            await self._check_may_move(app)
        if term is None and not await self.driver.until(lambda: self._decided(resource), _CAMPAIGN_S):
            raise self._refusals.no_leader(resource)
        if not standing.leads(self.driver.state, resource):
            raise self._refusals.not_leader(resource)
        return self._records[resource]

    async def close(self, resource: str, token: int) -> None:
        if self._current(resource, token):
            self._moves.check_stays(resource)
            self.driver.feed(events.Close(resource, token))
            if not await self.driver.until(lambda: not self._is_open(resource, token), _END_S):
                raise StoreUnavailable(self.driver.blocked or f"{resource} is not closed yet", hint="see the disk")

    async def release(self, resource: str, token: int, reason: Reason) -> None:
        if not self._current(resource, token):
            self.registration.forget(resource)
            return
        self._moves.check_stays(resource)
        self.registration.forget(resource)
        self.driver.feed(events.Release(resource, token, reason))
        if not await self.driver.until(lambda: not self._holds(resource, token), _END_S):
            raise StoreUnavailable(
                f"the end of epoch {self.driver.state.terms[resource].epoch} of {resource} is not committed yet",
                hint="it is closed here and goes on by itself",
            )

    async def tell_phases(self, resource: str, token: int, at: Mapping[str, float]) -> None:
        await self._phases.tell(resource, token, at)

    # --- planned moves

    async def switchover(self, resource: str, to: str) -> None:
        await self._moves.hand_over(resource, to, Reason.SWITCHOVER)

    async def give_away(self, resource: str) -> None:
        await self._moves.hand_over(resource, "", Reason.RELEASED)

    async def pause(self, on: bool, author: str) -> None:
        await self._moves.pause(on, author)

    async def drain(self, node: str, on: bool, author: str) -> None:
        await self._drainer.order(node, on, author)

    def drain_of(self, node: str) -> Draining | None:
        return self._drainer.of(node)

    # --- writes of the kernel's leader

    async def propose(
        self, token: int, compares: tuple[Compare, ...], puts: tuple[Put, ...], deletes: tuple[str, ...] = ()
    ) -> int:
        """Writes under the token, and returns etcd's revision of that.

        Raises NotLeader when it is not the token of the open term any more, Conflict when one of `compares` fails; anything
        but OutcomeUnknown says that it was not done.
        """
        number = next(self._numbers)
        answer = self._proposals[number] = asyncio.get_running_loop().create_future()
        try:
            self.driver.feed(events.Propose(number, token, compares, puts, deletes))
            async with asyncio.timeout(_PROPOSAL_S):
                proposed, attempt = await answer
        except TimeoutError:
            raise OutcomeUnknown("the write was not answered", hint="read again before trying again") from None
        finally:
            del self._proposals[number]
        if proposed.outcome is Outcome.COMMITTED:
            return int(proposed.rev)
        if proposed.outcome is Outcome.REFUSED:
            raise await self._refused(token, compares)
        if attempt is None or attempt.error is None or self.driver.state.restored:
            raise OutcomeUnknown("etcd is not the one that was written to", hint=RESTORED_HINT)
        raise attempt.error

    async def _refused(self, token: int, compares: tuple[Compare, ...]) -> PiccoloError:
        """By what: revisions only grow, so that a look afterwards still shows it. The token counts first."""
        epoch = keys.EPOCH + RESOURCE_KERNEL
        if not standing.leads(self.driver.state, RESOURCE_KERNEL):
            return self._refusals.not_leader(RESOURCE_KERNEL)
        try:
            found = await self.driver.store.revisions((epoch, *(one.key for one in compares)), _REFUSED_S)
        except PiccoloError:
            return Conflict("etcd refused the write", hint="read the head again")
        others = [one.key for one in compares if found.get(one.key, 0) != one.value]
        if found.get(epoch) == token and others:
            return Conflict(f"{others[0]} is another one by now", hint="read it again")
        return self._refusals.not_leader(RESOURCE_KERNEL)

    # --- inside

    def _store_lives(self) -> bool:
        return self._module.peers.instance("persistence") != ""

    def _heard(self, action: Action) -> None:
        log = self._module.log
        if isinstance(action, actions.Proposed):
            answer, attempt = self._proposals.get(action.proposal), self.driver.attempt(action.proposal)
            if answer is not None and not answer.done():
                answer.set_result((action, attempt))
        elif isinstance(action, actions.Over):
            self._moves.ended(action.resource, "" if action.why is Ended.HANDED_OVER else action.why)
            self._phases.over(action.resource)
            log.info("left a term", resource=action.resource, token=action.token, reason=action.why.value)
        elif isinstance(action, actions.SwitchoverFailed):
            self._moves.ended(action.resource, "it was not done in time, or the node is gone")
        elif isinstance(action, actions.Opened):
            log.info("opened a term", resource=action.resource, epoch=action.epoch, token=action.token, reason=action.reason)
            self._phases.opened(action)
        elif isinstance(action, actions.SessionOpened):
            log.info("opened a session", sid=action.sid)
        elif isinstance(action, actions.SessionOver):
            log.warning("ended a session", sid=action.sid, reason=action.why.value)
        elif isinstance(action, actions.Alarm):
            log.error("raised an alarm", reason=action.text)

    def _looked(self) -> None:
        """After each event: tells what has changed. Nothing for a heartbeat, and of a commit the head alone."""
        driver = self.driver
        state, facts = driver.state, driver.facts
        shape = (
            state.view.shape, state.terms, state.session is None, state.restored, driver.blocked,
            facts.nodes, facts.paused, facts.changed_count,
        )  # fmt: skip
        if facts.head != self._head:
            self._head = facts.head
            self.head_moved()
        if shape != self._shape:
            self._shape = shape
            self._records = standing.records(state, facts.changes)
            self._changed()
        self.registration.look()

    def _current(self, resource: str, token: int) -> bool:
        """Whether the token names the term that is held here. Raises Conflict for a token that never was."""
        record = self._records.get(resource)
        if record is None or token > record.token:
            raise Conflict(f"{token} is no token of {resource}", hint="campaign first")
        return self._holds(resource, token)

    def _holds(self, resource: str, token: int) -> bool:
        term = self.driver.state.terms.get(resource)
        return term is not None and term.token == token

    def _is_open(self, resource: str, token: int) -> bool:
        return self._holds(resource, token) and standing.leads(self.driver.state, resource)

    def _decided(self, resource: str) -> bool:
        return standing.leads(self.driver.state, resource) or self.hint(resource) is not None

    async def _check_may_move(self, app: str) -> None:
        """Where the app's data is at its last leader alone, only that one leads it. Raises NotLeader, and Busy before it is
        said how this node stands to the app: without that nobody knows of the data."""
        resource = resource_for_app(app)
        if app not in self.registration.standings:
            raise Busy(f"it is not said yet how this node stands to {app}", hint="that is said each second")
        if not await self.driver.until(lambda: self.driver.state.settled, _CAMPAIGN_S):
            raise self._refusals.no_leader(resource)
        home = placing.home_of(self.driver.state, self.driver.facts, self.standings(), app)
        if home not in ("", self._node):
            place, epoch = self.place(home), self.driver.state.view.epochs[resource]
            hint = LeaderHint(home, place.address, place.url, epoch.value.epoch)
            raise NotLeader(f"{resource} is at home on {home}", hint="its data is there alone", leader=hint)

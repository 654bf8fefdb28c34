"""What this node says of itself to the others, and what it hears of them beside leadership.

It keeps the wishes of those who would lead, `cand/<me>`, the list of members that the core acknowledges as takers, and the
cache of members for the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from piccolod import clock, etcd_conf
from piccolod.cluster_mode import Mode
from piccolod.errors import PiccoloError
from piccolod.leadership import events, transactions
from piccolod.leadership.placement import Standing
from piccolod.leadership.resources import RESOURCE_KERNEL, app_of, resource_for_app
from piccolod.leadership.roles import Reason
from piccolod.leadership.transactions import Kind, Put, Transaction
from piccolod.module import Module
from piccolod.protocol.cluster import KnownMember
from services.consensus import access, history, members_file, placing, standing
from services.consensus.access import Access
from services.consensus.cluster_records import CANDIDATE, MEMBER, CandidateRecord
from services.consensus.driver import Driver

# Who wants to lead asks each second; one that has gone silent is locked, or dead.
_WISH_S: Final = 3.0
_STORE_GONE_S: Final = 3.0
_LOOK_S: Final = 0.5
_PUT_S: Final = 1.0  # no more often than this
_ABLE: Final = CandidateRecord(True, "")
_DRAINED: Final = CandidateRecord(False, standing.DRAINED)
_UNASKED: Final = CandidateRecord(False, "it does not ask to lead: it is locked, or its store is not ready")


class Registration:
    def __init__(self, driver: Driver, module: Module, mode: Mode, store_lives: Callable[[], bool]) -> None:
        """`store_lives`: whether persistence has a process. Raises PiccoloError for settings of etcd that cannot be read."""
        self._driver = driver
        self._module = module
        self._mode = mode
        self._log = module.log
        self._store_lives = store_lives
        settings = etcd_conf.read(module.paths.etcd_conf)
        self._client_url = "" if settings is None else settings.client_url
        driver.owns_name = lambda: not self.is_replaced()
        self._store_at = clock.now()  # when it was last seen alive
        self._wishes: dict[str, tuple[Reason, float]] = {}
        self.standings: Mapping[str, Standing] = {}  # of this node, by app
        self._stood_until = 0.0
        self._delays: Mapping[str, float] = {}  # as the core was told
        self._looked: object = None
        self._nodes: Mapping[str, KnownMember] = {}
        self._noted: Mapping[str, KnownMember] = {}  # those that the disk has
        self._unnoted = ""  # why it has not
        self._paused = False
        self._drained = True  # as the core was told, which hears of no wish before it is known
        self._put_at = float("-inf")
        self._task: asyncio.Task[Any] | None = None

    def wish(self, resource: str, reason: Reason) -> None:
        """Lead the resource whenever nobody does, for as long as this is asked again. Apps stand instead."""
        known = self._wishes.get(resource)
        self._wishes[resource] = (reason, clock.now() + _WISH_S)
        if (known is None or known[0] is not reason) and not self._drained:
            self._driver.feed(events.Campaign(resource, reason))

    def forget(self, resource: str) -> None:
        if (app := app_of(resource)) is not None:
            self.standings = {name: each for name, each in self.standings.items() if name != app}
            self.look()
        elif self._wishes.pop(resource, None) is not None:
            self._driver.feed(events.Withdraw(resource))

    def stand(self, apps: Mapping[str, Standing]) -> None:
        """How this node stands to every app, for the next 3 s: those that it may lead it leads whenever nobody does."""
        self.standings, self._stood_until = apps, clock.now() + _WISH_S
        self.look()

    def look(self) -> None:
        """Tells the core when to claim each app, where that is another time than it was told."""
        state, facts = self._driver.state, self._driver.facts
        shape = (state.view.shape, facts.candidates, facts.nodes, facts.drained, state.terms, self.standings)
        if shape == self._looked or not state.viewed:
            return
        self._looked = shape
        found = placing.delays(state, facts, self.standings)
        if (before := self._delays) != found:
            self._delays = found
            gone = frozenset(resource_for_app(app) for app in before.keys() - found.keys())
            self._driver.feed(events.Campaigns({resource_for_app(app): found[app] for app in found}, gone))

    def is_out(self) -> bool:
        """Whether the cluster has taken this node out: it is on no list any more, or another machine has its name."""
        facts = self._driver.facts
        return self.is_replaced() or (facts.known and self._driver.state.config.node not in facts.nodes)

    def is_replaced(self) -> bool:
        """Another machine has its name."""
        own = self._driver.facts.nodes.get(self._driver.state.config.node)
        if own is None:
            return False
        return self._client_url not in ("", own.client_url) or self._mode.rpc not in ("", own.rpc)

    async def run(self) -> None:
        """For as long as the process lives."""
        self._task = asyncio.current_task()
        await self._driver.until(lambda: self._driver.state.viewed)
        self._learn()
        for change in await history.last(self._driver.store):
            self._driver.facts.changed(change)
        while True:
            self._go_when_out()
            self._expire_wishes()
            self._give_up_without_a_store()
            self._learn()
            await self._note_members()
            await self._stand()
            await self._driver.until(self._has_news, _LOOK_S)

    def _has_news(self) -> object:
        facts = self._driver.facts
        changed = facts.paused != self._paused or self._is_drained() != self._drained
        return self._is_due() or (facts.nodes and facts.nodes != self._nodes) or changed

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _go_when_out(self) -> None:
        """Nothing acts any more for who was taken out, and its session ends: until then its name is not free."""
        if not self.is_out() or self._driver.state.leaving:
            return
        self._log.error("this node was taken out of the cluster: ends what it leads")
        for resource in list(self._wishes):
            self.forget(resource)
        self.stand({})
        self._driver.feed(events.Leave())

    def _expire_wishes(self) -> None:
        now = clock.now()
        for resource, (reason, until) in list(self._wishes.items()):
            if resource in self._driver.state.terms:
                self._wishes[resource] = (reason, now + _WISH_S)
            elif until <= now:
                self.forget(resource)
        if self.standings and self._stood_until <= now:
            self.stand({})

    def _give_up_without_a_store(self) -> None:
        """A persistence that dies again and again must not hold the kernel for ever. It is back in milliseconds otherwise."""
        now, state = clock.now(), self._driver.state
        if self._store_lives():
            self._store_at = now
        elif standing.leads(state, RESOURCE_KERNEL) and now - self._store_at > _STORE_GONE_S:
            self._log.error("gives the kernel up: persistence has no process", seconds=round(now - self._store_at, 1))
            self.forget(RESOURCE_KERNEL)
            self._driver.feed(events.Release(RESOURCE_KERNEL, state.terms[RESOURCE_KERNEL].token, Reason.UNHEALTHY))

    def _learn(self) -> None:
        """The members, for those who may take over; the pause; whether this node takes anything over."""
        facts = self._driver.facts
        if self._is_drained() != self._drained:
            self._drained = self._is_drained()
            for resource, (reason, _) in self._wishes.items():
                self._driver.feed(events.Withdraw(resource) if self._drained else events.Campaign(resource, reason))
        if facts.paused != self._paused:
            self._paused = facts.paused
            self._driver.feed(events.Pause(self._paused))
        if facts.nodes == self._nodes or not facts.nodes:
            return
        self._nodes = facts.nodes
        members = frozenset(name for name, node in facts.nodes.items() if node.role == MEMBER)
        self._driver.feed(events.Members(members))

    async def _note_members(self) -> None:
        """Where etcd is, for this life and the next. In a thread: a busy disk takes longer for a sync than a beat may."""
        nodes = self._nodes
        if nodes == self._noted:
            return
        try:
            found = await asyncio.to_thread(self._write, nodes)
        except (OSError, PiccoloError) as error:
            if self._unnoted != str(error):
                self._unnoted = str(error)
                self._log.warning("cannot note the members; it is tried again", reason=str(error))
            return
        self._noted, self._unnoted = nodes, ""
        if found is not None:
            self._driver.store.client.renew(found.endpoints, found.tls)

    def _write(self, known: Mapping[str, KnownMember]) -> Access | None:
        """Where etcd is by that, once the disk has it; None where its owner says it. Raises OSError, PiccoloError."""
        paths = self._module.paths
        if members_file.read(paths) != known:
            members_file.write(paths, known)
        return None if self._mode.is_external else access.managed(paths, known)

    async def _stand(self) -> None:
        """Keeps `cand/<me>` at what is so."""
        state = self._driver.state
        if not self._is_due() or state.session is None:
            return
        self._put_at = clock.now()
        me = state.config.node
        put = Put(CANDIDATE + me, self._candidate(), state.lease_id)
        record = Transaction(Kind.RECORD, (transactions.same_session(me, state.session.sid),), (put,))
        await self._driver.put(record)

    def _is_due(self) -> bool:
        """Whether etcd has something else there, and can be told."""
        state = self._driver.state
        ready = state.session is not None and state.lease_id and not state.restored
        if not ready or clock.now() - self._put_at < _PUT_S:
            return False
        return self._driver.facts.candidates.get(state.config.node) != self._candidate()

    def _is_drained(self) -> bool:
        facts = self._driver.facts
        return not facts.known or self._driver.state.config.node in facts.drained

    def _candidate(self) -> CandidateRecord:
        able = _DRAINED if self._drained else _ABLE if RESOURCE_KERNEL in self._wishes else _UNASKED
        return msgspec.structs.replace(able, apps=dict(self.standings))

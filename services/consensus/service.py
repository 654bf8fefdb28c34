"""The consensus module: holds elections and keeps the deadline page. On a node alone every campaign is granted.

A member of a cluster has its leadership in etcd, and carries the sealed log there.

It judges nothing: persistence decides whether this node should lead `kernel`, apps decides for `app:*`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from piccolod import clock, cluster_mode, etcd_conf
from piccolod.cluster_mode import Mode
from piccolod.errors import Busy, Conflict, Forbidden, Invalid, NotFound, PiccoloError
from piccolod.leadership import leash_table
from piccolod.leadership.page import PageWriter
from piccolod.leadership.records import ChangeRecord, TermRecord, TermState
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.roles import Reason
from piccolod.module import Caller, Module
from piccolod.protocol.base import Level, Nothing
from piccolod.protocol.consensus import (
    Campaign,
    Change,
    Changes,
    Closing,
    DrainNode,
    GetHistory,
    GetLeadership,
    GetStandings,
    GetWhy,
    Leadership,
    Leaderships,
    Pause,
    Release,
    Stand,
    Standings,
    Switchover,
    TellPhases,
    Term,
    Why,
    Withdraw,
)
from piccolod.protocol.events import ControlRevChanged, ControlStoreCommit
from services.consensus.joining.alone import Alone
from services.consensus.joining.supervised import Supervised
from services.consensus.leaser import Leaser
from services.consensus.registry import Registry, explanation, listed
from services.consensus.static_leaser import StaticLeaser
from services.consensus.term_store import set_aside

if TYPE_CHECKING:
    from services.consensus.joining.joined import Joined
    from services.consensus.log_service import LogService
    from services.consensus.owners_etcd import OwnersEtcd

_RESOURCE: Final = re.compile(r"kernel|app:[a-z]([a-z0-9-]{0,48}[a-z0-9])?")
# After a crash of the supervisor the old consensus lives on for at most 0.5 s.
_PAGE_WAIT_S: Final = 2.0
_HISTORY_LIMIT: Final = 1000
_JUDGE_S: Final = 1.0


class Service:
    def __init__(self, module: Module) -> None:
        self._module = module
        self._file = module.paths.consensus / "terms.db"
        self._page: PageWriter
        self._leaser: Leaser
        self._registry: Registry
        self._membership: Alone | Joined
        self._cluster = ""  # this node is a member of; empty: it is alone
        self._log: LogService | None = None  # the sealed log of a cluster
        self._announced_rev = 0
        self._unkept = ""  # why this node's member of etcd is not looked after
        self._astray = ""  # why the configuration is not what this member goes by
        self._owners: OwnersEtcd | None = None
        self._damaged: Sequence[Path] = ()  # stores of terms that were set aside
        self._told: tuple[Level, str] | None = None

    async def start(self) -> None:
        module = self._module
        module.paths.consensus.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._page = await self._only_writer()
        mode = cluster_mode.load(module.paths.cluster)
        self._cluster = "" if mode is None else mode.cluster
        if mode is not None:
            await self._settle_recovery()
        self._leaser = self._alone() if mode is None else self._member(mode)
        self._registry = Registry(module.config.node.name, self._leaser)
        await self._leaser.open()
        self._damaged = set_aside(self._file)
        await self._membership.start()
        self._membership.serve()
        module.serve(Campaign, self._campaign)
        module.serve(Stand, self._stand)
        module.serve(GetStandings, self._standings)
        module.serve(TellPhases, self._tell_phases)
        module.serve(Closing, self._closing)
        module.serve(Withdraw, self._withdraw)
        module.serve(GetLeadership, self._leadership)
        module.serve(GetHistory, self._history)
        module.serve(GetWhy, self._why)
        module.serve(Switchover, self._switchover)
        module.serve(Release, self._release)
        module.serve(Pause, self._pause)
        module.serve(DrainNode, self._drain)
        module.on(ControlStoreCommit, self._on_commit)
        self._announce()
        if mode is not None:
            self._keep_etcd(mode)
        self._judge_health()
        if mode is not None:
            module.spawn(self._keep_judging(), name="health")
        module.log.info("opened the terms", held=[record.resource for record in listed(self._leaser.records().values())])

    def _alone(self) -> Leaser:
        node = self._module.config.node
        leaser = StaticLeaser(self._file, self._page, node.name, node.address)
        self._membership = Alone(self._module, leaser)
        return leaser

    async def _settle_recovery(self) -> None:
        """Before anybody reads where etcd is."""
        from services.consensus.joining import recovery_journal

        await recovery_journal.settle(self._module.paths, Supervised(self._module.paths), self._module.log)

    def _member(self, mode: Mode) -> Leaser:
        """grpc comes with it: here, after the fork, and nowhere else."""
        from services.consensus import access
        from services.consensus.etcd_leaser import EtcdLeaser
        from services.consensus.joining.joined import Joined
        from services.consensus.log_service import LogService
        from services.consensus.unlock_grants import UnlockGrants

        leaser = EtcdLeaser(self._module, self._page, mode, self._announce)
        self._membership = Joined(self._module, leaser, mode)
        self._astray = access.trouble(self._module.config.etcd, mode)
        self._log = LogService(self._module, leaser, self._quota_bytes(mode), compacts=not mode.is_external)
        self._log.start()
        UnlockGrants(self._module, leaser.driver).start()
        return leaser

    async def stop(self) -> None:
        """Terms live on: only those who act in them may end them."""
        if self._module.stop_all:
            await self._leaser.leave()
        await self._leaser.end()
        self._page.close()

    async def _keep_judging(self) -> None:
        """Of a member: whether etcd answers, and who has gone silent, shows by nothing that happens."""
        while True:
            self._judge_health()
            self._announce()
            await asyncio.sleep(_JUDGE_S)

    def _judge_health(self) -> None:
        alarm, unread = ("", "") if self._owners is None else (self._owners.alarm, self._owners.unread)
        if trouble := self._leaser.trouble() or alarm:
            self._tell_health(Level.ERROR, "; ".join(part for part in (trouble, unread) if part))
        elif self._damaged:
            reason = f"the store of terms was damaged and begun anew; the old one is {self._damaged[-1]}: remove it once seen"
            self._tell_health(Level.WARN, reason)
        elif warning := self._unkept or self._astray or unread:
            self._tell_health(Level.WARN, warning)
        else:
            self._tell_health(Level.OK)

    def _tell_health(self, level: Level, reason: str = "") -> None:
        if self._told != (level, reason):
            self._told = (level, reason)
            self._module.health(level, reason)

    def _quota_bytes(self, mode: Mode) -> int:
        """Of etcd, unless it tells."""
        if mode.is_external:
            return etcd_conf.OWNERS_QUOTA_BYTES
        settings = etcd_conf.read(self._module.paths.etcd_conf)
        return settings.quota_bytes if settings else etcd_conf.QUOTA_BYTES

    def _keep_etcd(self, mode: Mode) -> None:
        """Where a member of etcd lives. Its imports are made before READY, for they hold up the beat."""
        if mode.is_external:
            self._watch_owners()
            return
        try:
            settings = etcd_conf.read(self._module.paths.etcd_conf)
            if settings is None:
                return
            self._keep(settings)
        except (PiccoloError, OSError, ValueError) as error:
            # The terms of this node need no etcd: without them nothing at all would run here.
            reason = f"etcd of this node is not looked after: {error.detail if isinstance(error, PiccoloError) else error}"
            self._module.log.warning("cannot look after etcd", reason=reason)
            self._unkept = reason

    def _keep(self, settings: etcd_conf.Settings) -> None:
        """Raises PiccoloError, OSError, ValueError for settings or certificates that cannot be used."""
        from services.consensus.etcd.upkeep import Upkeep, local_client, tell_supervisor

        control = self._module.paths.supervisor_socket
        upkeep = Upkeep(
            local_client(settings), settings.quota_bytes, lambda alarms: tell_supervisor(control, alarms), self._module.log
        )
        self._module.spawn(upkeep.run(), name="etcd upkeep")

    def _watch_owners(self) -> None:
        from services.consensus import access
        from services.consensus.etcd_leaser import EtcdLeaser
        from services.consensus.owners_etcd import OwnersEtcd

        with suppress(OSError):  # the next start tries again
            access.remember(self._module.paths, self._module.config.etcd)
        assert isinstance(self._leaser, EtcdLeaser)
        module, client = self._module, self._leaser.driver.store.client
        self._owners = OwnersEtcd(client, lambda: access.external(module.paths, module.config.etcd), module.log)
        module.spawn(self._owners.run(), name="etcd's owner")

    async def _only_writer(self) -> PageWriter:
        give_up_at = clock.now() + _PAGE_WAIT_S
        while True:
            try:
                return PageWriter(self._module.paths.page)
            except BlockingIOError:
                if clock.now() >= give_up_at:
                    raise
                await asyncio.sleep(0.02)

    # --- commands of those who lead

    async def _campaign(self, request: Campaign, caller: Caller) -> Term:
        _check_right(request.resource, caller)
        self._membership.check_begins()
        if request.resource == RESOURCE_KERNEL and request.cluster != self._cluster:
            raise Conflict(
                f"{caller.module} writes for {_described(request.cluster)}, and this is {_described(self._cluster)}",
                hint="it is restarted right now",
            )
        before = self._leaser.records().get(request.resource)
        record = await self._leaser.campaign(request.resource, _reason(request.reason))
        self._announce()
        if before is None or before.token != record.token:
            self._module.log.info(
                "claimed leadership", resource=record.resource, epoch=record.epoch, token=record.token, reason=record.reason
            )
        return Term(resource=record.resource, gen=record.gen, epoch=record.epoch, token=record.token)

    async def _stand(self, request: Stand, caller: Caller) -> Nothing:
        self._leaser.stand(request.apps)
        return Nothing()

    async def _tell_phases(self, request: TellPhases, caller: Caller) -> Nothing:
        _check_right(request.resource, caller)
        await self._leaser.tell_phases(request.resource, request.token, request.at)
        return Nothing()

    async def _standings(self, request: GetStandings, caller: Caller) -> Standings:
        return Standings(nodes={node: dict(each) for node, each in self._leaser.standings().items()})

    async def _closing(self, request: Closing, caller: Caller) -> Nothing:
        _check_right(request.resource, caller)
        try:
            await self._leaser.close(request.resource, request.token)
        finally:
            self._announce()  # the page has it, also when the disk refused
        return Nothing()

    async def _withdraw(self, request: Withdraw, caller: Caller) -> Nothing:
        _check_right(request.resource, caller)
        reason = _reason(request.reason)
        record = self._leaser.records().get(request.resource)
        if record is not None and record.held and record.token == request.token:
            await self._check_stopped(record)
        await self._leaser.release(request.resource, request.token, reason)
        self._announce()
        if record is not None and record.held and record.token == request.token:
            self._module.log.info("released leadership", resource=record.resource, epoch=record.epoch, reason=reason)
        return Nothing()

    async def _check_stopped(self, record: TermRecord) -> None:
        """Refuses to end a term that still acts. The word of who withdraws is checked where that is possible."""
        if record.resource == RESOURCE_KERNEL:
            if record.state is TermState.OPEN:
                raise Conflict("writes may be under way: `kernel` is closing first, then drained, then withdrawn")
            return
        # Shut first, looked at second: what starts after the look is refused by the gate.
        await self._leaser.close(record.resource, record.token)
        running = await asyncio.to_thread(_running, self._module, record.resource)
        if running:
            raise Busy(f"{record.resource} still runs in {', '.join(running)}", hint="it is not fenced; stop it first")

    # --- questions

    async def _leadership(self, request: GetLeadership, caller: Caller) -> Leaderships:
        if request.resource is not None:
            return Leaderships(leaderships=(self._shown(request.resource),))
        records = listed(self._leaser.records().values())
        names = [record.resource for record in records]
        return Leaderships(leaderships=tuple(self._shown(name) for name in dict.fromkeys([RESOURCE_KERNEL, *names])))

    async def _history(self, request: GetHistory, caller: Caller) -> Changes:
        if not 1 <= request.limit <= _HISTORY_LIMIT:
            raise Invalid(f"limit must be 1 to {_HISTORY_LIMIT}, not {request.limit}")
        return Changes(changes=_changes(await self._leaser.history(request.resource, request.limit)))

    async def _why(self, request: GetWhy, caller: Caller) -> Why:
        leadership = self._shown(request.resource)
        record = self._leaser.records().get(request.resource)
        closing = record is not None and record.state is TermState.CLOSING
        history = await self._leaser.history(request.resource, 10)
        return Why(leadership=leadership, explanation=explanation(leadership, closing), history=_changes(history))

    async def _switchover(self, request: Switchover, caller: Caller) -> Leadership:
        self._shown(request.resource)
        await self._leaser.switchover(request.resource, request.to)
        return self._shown(request.resource)

    async def _release(self, request: Release, caller: Caller) -> Leadership:
        self._shown(request.resource)
        await self._leaser.give_away(request.resource)
        return self._shown(request.resource)

    async def _pause(self, request: Pause, caller: Caller) -> Nothing:
        await self._leaser.pause(request.on, request.author)
        self._module.log.info("paused moves" if request.on else "resumed moves", author=request.author)
        return Nothing()

    async def _drain(self, request: DrainNode, caller: Caller) -> Nothing:
        await self._leaser.drain(request.node, request.on, request.author)
        self._module.log.info("drains" if request.on else "ends a drain", node=request.node, author=request.author)
        return Nothing()

    def _shown(self, resource: str) -> Leadership:
        record = self._leaser.records().get(resource)
        if record is not None:
            return self._registry.leadership(record, clock.now())
        if resource != RESOURCE_KERNEL:
            raise NotFound(f"{resource} has never been led here", hint="`piccoloctl leaders list` shows what is led")
        return self._registry.nobody(resource)

    # --- events

    def _announce(self) -> None:
        for event in self._registry.news():
            self._module.publish(event)
        if self._log is not None:
            self._log.changed()

    def _on_commit(self, event: ControlStoreCommit) -> None:
        """On a node alone, which leads its store, what it committed is the head."""
        if self._log is not None:
            self._log.applied(event.rev)
        elif event.rev != self._announced_rev:
            self._announced_rev = event.rev
            self._module.publish(ControlRevChanged(rev=event.rev))


def _check_right(resource: str, caller: Caller) -> None:
    if not _RESOURCE.fullmatch(resource):
        raise Invalid(f"{resource!r} is no resource", hint="`kernel` or `app:<name>`")
    owner = "persistence" if resource == RESOURCE_KERNEL else "apps"
    if caller.module != owner:
        raise Forbidden(f"{caller.module} does not decide who leads {resource}: {owner} does")


def _described(cluster: str) -> str:
    return f"a member of the cluster {cluster}" if cluster else "a node alone"


def _reason(text: str) -> Reason:
    try:
        return Reason(text)
    except ValueError:
        raise Invalid(f"{text!r} is no reason", hint=", ".join(Reason)) from None


def _running(module: Module, resource: str) -> list[str]:
    return [entry.container for entry in leash_table.alive(leash_table.read(module.paths.leash).values(), resource)]


def _changes(records: tuple[ChangeRecord, ...]) -> tuple[Change, ...]:
    return tuple(msgspec.convert(msgspec.to_builtins(record), Change) for record in records)

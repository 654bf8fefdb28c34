"""A member as the one that is left: what it sees of etcd, and the order to begin the cluster anew with it alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final

import msgspec

from piccolod import etcd_conf
from piccolod.cluster_mode import Mode
from piccolod.errors import Busy, Conflict, PiccoloError
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.module import Caller, Module
from piccolod.protocol.log import ExportLog
from piccolod.protocol.recovery import (
    GetLogEnd,
    GetStoreView,
    Recover,
    Recovery,
    Standing,
    Store,
    StoreView,
    TakeEntries,
)
from services.consensus import members_file
from services.consensus.etcd_leaser import EtcdLeaser
from services.consensus.joining import recovery_checks
from services.consensus.joining.own_member import OwnMember
from services.consensus.joining.recovery import EXPORT_S, Plan, Recovering
from services.consensus.refusals import Refusals

_END_S: Final = 5.0
_LOST: Final = (Store.SILENT, Store.RESTORED)  # what its own member has is read without the others then


class Survivor:
    """`check_stopped()` raises Conflict while a container of a led app lives here; `restart()` ends this life of the module."""

    def __init__(
        self,
        module: Module,
        leaser: EtcdLeaser,
        mode: Mode,
        refusals: Refusals,
        check_stopped: Callable[[], Awaitable[None]],
        restart: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._module = module
        self._leaser = leaser
        self._mode = mode
        self._refusals = refusals
        self._check_stopped = check_stopped
        self._restart = restart
        self._turn = asyncio.Lock()
        self.is_recovering = False  # from the moment on at which nothing is led here, to the end of this life

    def serve(self) -> None:
        self._module.serve(GetStoreView, self._store_view)
        self._module.serve(Recover, self._recover)

    async def _store_view(self, request: GetStoreView, caller: Caller) -> StoreView:
        store, settings = self._store(), etcd_conf.read(self._module.paths.etcd_conf)
        if store not in _LOST or settings is None:
            return StoreView(store=store, gen=self._leaser.driver.state.gen)
        async with aclosing(self._own_member(settings)) as own:
            return await self._view(own, store)

    def _own_member(self, settings: etcd_conf.Settings) -> OwnMember:
        return OwnMember(settings, self._leaser.driver.store.prefix)

    async def _view(self, own: OwnMember, store: Store) -> StoreView:
        rev = await own.head_rev() if store in _LOST else 0
        return StoreView(store=store, gen=self._leaser.driver.state.gen, log_rev=rev, unread=own.unread)

    def _store(self) -> Store:
        if self.is_recovering:
            return Store.RECOVERING
        if self._leaser.driver.state.restored:
            return Store.RESTORED
        if self._refusals.fresh():
            return Store.ANSWERS
        return Store.UNKNOWN if self._refusals.has_just_begun() else Store.SILENT

    async def _recover(self, request: Recover, caller: Caller) -> Recovery:
        """From the moment on at which this node leads nothing any more this life of the module is over, however it ends."""
        if self.is_recovering or self._turn.locked():
            raise Busy("the cluster is being recovered here already", hint="try again in a moment")
        async with self._turn:
            found, plan = await self._planned(request)
            if not request.force:
                return found
            await self._check_stopped()
            recovery_checks.check_gone(self._mode.node, self._store())  # again: it may have been silent for a moment
            self.is_recovering = True
            try:
                await self._leaser.abandon()
                await self._check_stopped()
                await Recovering(self._module, self._mode).run(plan)
            finally:
                self._module.spawn(self._restart(), name="restart after a recovery")
        return msgspec.structs.replace(found, done=True)

    async def _planned(self, request: Recover) -> tuple[Recovery, Plan]:
        """What it would be. Raises Conflict, Busy, Locked, and what keeps the log from being exported."""
        node, paths, state = self._mode.node, self._module.paths, self._leaser.driver.state
        settings = etcd_conf.read(paths.etcd_conf)
        if settings is None:
            raise Conflict(
                "the etcd of this cluster is kept by its owner, and a recovery begins one of its members anew",
                hint="bring that etcd back as it was: its members believe no older copy, and keep the whole log meanwhile",
            )
        if self._module.config.etcd.is_external:
            raise Conflict(
                "the new etcd is made by [etcd] of the configuration, which names one that its owner keeps",
                hint='put mode = "auto" back into [etcd], and restart piccolod',
            )
        members = members_file.read(paths)
        seen = {name: record.value for name, record in state.view.epochs.items()}
        async with aclosing(self._own_member(settings)) as etcd:
            own = await self._standing(etcd, await self._view(etcd, self._store()))
            last = await etcd.epochs(seen)
            view = msgspec.structs.replace(own.view, unread=etcd.unread)
        end = recovery_checks.check(node, own, members, request.heard)
        await self._module.call(ExportLog(after=0, limit=1, recovers=True), timeout_s=EXPORT_S)
        epochs = {name: record.epoch for name, record in last.items()}
        epochs[RESOURCE_KERNEL] = max(epochs.get(RESOURCE_KERNEL, 0), end.epoch)
        former = tuple(sorted(members.keys() - {node}))
        gens = [each.standing.view.gen for each in request.heard if each.standing is not None]
        lost = recovery_checks.lost(node, end, view, members, request.heard, last)
        planned = Recovery(node=node, done=False, rev=end.rev, at_ms=end.at_ms, former=former, lost=tuple(lost))
        return planned, Plan(max([state.gen, end.gen, *gens]), epochs, former)

    async def _standing(self, etcd: OwnMember, view: StoreView) -> Standing:
        """Of this node, once it has taken what its own etcd has beyond its log."""
        node, call = self._mode.node, self._module.call
        try:
            end = await call(GetLogEnd(), timeout_s=_END_S)
            if view.store not in _LOST or end.locked:
                return Standing(node=node, view=view, end=end)
            async for page in etcd.entries(end.rev):
                before, end = end.rev, await call(TakeEntries(entries=page), timeout_s=EXPORT_S)
                if end.rev == before:
                    break
            end = await call(TakeEntries(keyset=await etcd.keyset()), timeout_s=_END_S)
        except PiccoloError as error:
            return Standing(node=node, view=view, problem=error.detail)
        return Standing(node=node, view=view, end=end)

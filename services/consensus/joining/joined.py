"""The commands of membership on a member."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import msgspec

from piccolod import clock, cluster_mode
from piccolod.cluster_mode import Mode
from piccolod.errors import Busy, Conflict, StoreUnavailable
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.module import Caller, Module
from piccolod.protocol.base import Nothing
from piccolod.protocol.cluster import (
    AddMember,
    Admission,
    Cluster,
    GetCluster,
    InitCluster,
    JoinCluster,
    Leave,
    RemoveMember,
)
from piccolod.protocol.joining import KeepCertificate
from services.consensus import access, members_file, prover, standing, term_store
from services.consensus.etcd_leaser import EtcdLeaser
from services.consensus.joining import checks, renewal
from services.consensus.joining.attempt import AttemptFile
from services.consensus.joining.folder import Folder, set_store_aside
from services.consensus.joining.former import FormerMembers
from services.consensus.joining.members import Membership
from services.consensus.joining.supervised import ANSWERED_S, Supervised, restart_owed
from services.consensus.joining.survivor import Survivor
from services.consensus.refusals import Refusals, restored


class Joined:
    def __init__(self, module: Module, leaser: EtcdLeaser, mode: Mode) -> None:
        self._module = module
        self._leaser = leaser
        self._mode = mode
        self._folder = Folder(module.paths)
        self._supervised = Supervised(module.paths)
        self._refusals = Refusals(leaser.driver, mode.node, leaser.place)
        store = leaser.driver.store
        self._members = Membership(
            store.client, store.prefix, self._folder, mode.node, self._leads, module.log, external=mode.is_external
        )
        self._former = FormerMembers(module, lambda: self._leads() and not self._survivor.is_recovering)
        self._survivor = Survivor(module, leaser, mode, self._refusals, self._check_stopped, self._restart)

    async def start(self) -> None:
        """Ends what a crash of init or join left undone, before anybody is granted a term here.

        Raises PiccoloError, OSError: a process that takes itself for alone must not write, so this module starts again.
        """
        await asyncio.to_thread(AttemptFile(self._module.paths).forget)
        await asyncio.to_thread(self._folder.drop_draft)
        if await asyncio.to_thread(self._folder.settle_store):
            self._module.log.info("set the store aside that this node had alone")
        await restart_owed(self._folder, self._supervised)

    def check_begins(self) -> None:
        """Terms of a member begin as etcd says."""

    def serve(self) -> None:
        self._module.serve(GetCluster, self._cluster)
        self._module.serve(InitCluster, self._member_already)
        self._module.serve(JoinCluster, self._member_already)
        self._module.serve(AddMember, self._add)
        self._module.serve(RemoveMember, self._remove)
        self._module.serve(Leave, self._leave)
        self._module.serve(KeepCertificate, self._keep_certificate)
        self._survivor.serve()
        self._module.spawn(self._members.run(), name="members")
        self._module.spawn(self._former.forget(), name="former members")

    async def _cluster(self, request: GetCluster, caller: Caller) -> Cluster:
        if self._survivor.is_recovering:
            raise Busy("the cluster is being recovered here", hint="try again in a moment")
        if self._leaser.driver.state.restored:
            raise restored(self._leaser.driver)
        found = await self._members.cluster(self._mode.cluster)
        told = list(found.warnings)
        if self._leaser.driver.facts.paused:
            told.append("the cluster is paused, nothing moves between nodes: `piccoloctl cluster resume` ends that")
        for node in sorted(self._leaser.driver.facts.drained):
            told.append(f"{node} is drained, it takes nothing over: `piccoloctl nodes undrain {node}` ends that")
        out = self._leaser.registration.is_out() or self._mode.node not in {each.node for each in found.members}
        if out:
            told.append(f"{self._mode.node} was taken out of the cluster: `piccoloctl cluster leave` makes it a node alone")
        state, now = self._leaser.driver.state, clock.now()
        members = tuple(
            msgspec.structs.replace(
                each, deadline_s=standing.deadline_s(state, each.node, now), drain=self._leaser.drain_of(each.node)
            )
            for each in found.members
        )
        return msgspec.structs.replace(found, members=members, warnings=tuple(told), out=out)

    async def _member_already(self, request: InitCluster | JoinCluster, caller: Caller) -> NoReturn:
        checks.may_found_or_join(self._module.config)
        raise Conflict("this node has just ceased to be a member", hint="try again in a moment")

    async def _add(self, request: AddMember, caller: Caller) -> Admission:
        self._check_leads()
        self._former.check_forgotten()
        return await self._members.add(request, self._mode.cluster)

    async def _remove(self, request: RemoveMember, caller: Caller) -> Nothing:
        self._check_leads()
        await self._members.remove(request.node)
        return Nothing()

    async def _leave(self, request: Leave, caller: Caller) -> Nothing:
        """What acts here ends first; then the rest is of a node alone, also after a crash at any step of it.

        The next life of this module wipes the cluster's folder, when nobody writes into it any more.
        """
        await self._check_out(request.force)
        await self._check_stopped()
        if not await self._leaser.retire() and not request.force:
            raise Busy("this node still ends what it led in the cluster", hint="try again in a moment")
        await self._check_stopped()
        await self._leaser.abandon()
        try:
            await asyncio.to_thread(self._become_alone)
        finally:  # whichever mode it is in now, this life of the module is over
            self._module.spawn(self._restart(), name="restart alone")
        self._module.log.info("left the cluster", cluster=self._mode.cluster)
        return Nothing()

    async def _check_out(self, force: bool) -> None:
        """Raises Conflict for a member; StoreUnavailable, StoreRestored when that is not known, and must be."""
        if self._leaser.driver.state.restored:  # what that etcd says of it is not believed either
            if not force:
                raise restored(self._leaser.driver)
            return
        try:
            member = self._mode.node in await self._members.records() and not self._leaser.registration.is_replaced()
        except StoreUnavailable:
            if not force:
                raise
            member = False
        if member:
            raise Conflict(f"{self._mode.node} is still a member", hint="`piccoloctl cluster leave` takes it out first")

    async def _check_stopped(self) -> None:
        """Raises Conflict while a container of a led app lives: a node alone would know nothing of its term."""
        if running := sorted(await asyncio.to_thread(prover.running, self._module.paths)):
            raise Conflict(f"{', '.join(running)}: containers still run here", hint="stop them, or try again in a moment")

    def _become_alone(self) -> None:
        """The store goes before `mode`: with it this would be a node alone that has all of the cluster's data."""
        paths = self._module.paths
        self._folder.owe_restarts()
        set_store_aside(paths)
        paths.lock_mark.unlink(missing_ok=True)  # it was the cluster's store that was locked on purpose
        term_store.forget(paths.consensus / "terms.db")
        cluster_mode.leave(paths.cluster)

    async def _keep_certificate(self, request: KeepCertificate, caller: Caller) -> Nothing:
        """etcd takes it up by itself, with its next connection."""
        await asyncio.to_thread(renewal.keep, self._folder, request.certificate, self._mode)
        if not self._mode.is_external:
            found = access.managed(self._module.paths, members_file.read(self._module.paths))
            self._leaser.driver.store.client.renew(found.endpoints, found.tls)
        self._module.log.info("renewed the certificate of this node")
        return Nothing()

    async def _restart(self) -> None:
        """The next life of this module restarts the others."""
        await asyncio.sleep(ANSWERED_S)
        await self._supervised.restart("consensus")

    # --- who leads

    def _leads(self) -> bool:
        return standing.leads(self._leaser.driver.state, RESOURCE_KERNEL)

    def _check_leads(self) -> None:
        """Raises NotLeader, which names who does; without one NoLeader, StoreUnavailable, StoreRestored."""
        if not self._leads():
            refusal = self._refusals.not_leader(RESOURCE_KERNEL)
            raise refusal if refusal.leader is not None else self._refusals.no_leader(RESOURCE_KERNEL)

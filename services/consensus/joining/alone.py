"""The commands of membership on a node alone: it can found a cluster or join one, and has nobody to let in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final, NoReturn

from piccolod import cluster_mode
from piccolod.errors import Busy, Conflict, PiccoloError
from piccolod.module import Caller, Module
from piccolod.protocol.cluster import (
    AddMember,
    Cluster,
    GetCluster,
    InitCluster,
    JoinCluster,
    KnownMember,
    Leave,
    Member,
    RemoveMember,
)
from piccolod.protocol.persistence import CryptoStatus, GetCryptoStatus
from piccolod.protocol.recovery import GetStoreView, Recover
from services.consensus import members_file
from services.consensus.joining import checks
from services.consensus.joining.folder import Folder
from services.consensus.joining.place import own_record
from services.consensus.joining.supervised import ACTING, ANSWERED_S, Supervised, late, restart_owed, undo
from services.consensus.leaser import Leaser

_STATUS_S: Final = 5.0


class Alone:
    def __init__(self, module: Module, leaser: Leaser) -> None:
        self._module = module
        self._leaser = leaser
        self._folder = Folder(module.paths)
        self._supervised = Supervised(module.paths)
        self._turn = asyncio.Lock()
        self._is_ending = False

    async def start(self) -> None:
        """Wipes what a crash of `init`, `join` or `leave` left, and whoever takes this node for a member starts again.

        Raises PiccoloError, OSError when those cannot be restarted: then this module starts again.
        """
        if self._folder.is_left_over():
            self._module.log.warning("wiping what was left of a cluster that this node is no member of")
            try:
                await undo(self._folder, self._supervised, self._module.config.etcd)
            except (PiccoloError, OSError) as error:  # the terms of this node need none of it; the next start tries again
                self._module.log.error("could not wipe it", reason=str(error))
        await restart_owed(self._folder, self._supervised)

    def check_begins(self) -> None:
        """Raises Busy while the log is on its way into a cluster: what was closed for that must not be led again here."""
        if self._is_ending:
            raise Busy("this node is becoming a member of a cluster", hint="try again in a moment")

    def serve(self) -> None:
        self._module.serve(GetCluster, self._cluster)
        self._module.serve(InitCluster, self._init)
        self._module.serve(JoinCluster, self._join)
        self._module.serve(AddMember, self._nobody)
        self._module.serve(RemoveMember, self._nobody)
        self._module.serve(Leave, self._nobody)
        self._module.serve(Recover, self._nobody)
        self._module.serve(GetStoreView, self._nobody)

    async def _cluster(self, request: GetCluster, caller: Caller) -> Cluster:
        return Cluster(mode="alone", node=self._module.config.node.name)

    async def _init(self, request: InitCluster, caller: Caller) -> Cluster:
        async with self._one_at_a_time():
            config = self._module.config
            checks.may_found_or_join(config)
            status = await self._status()
            checks.may_found(status)
            init = (await late("init")).Init(self._module, self._leaser, self._folder, self._supervised, request)
            self._is_ending = True
            await self._become(init.run(status))
            return self._begun(status.cluster_id, {config.node.name: own_record(self._module)}, init.notes)

    async def _join(self, request: JoinCluster, caller: Caller) -> Cluster:
        async with self._one_at_a_time():
            config = self._module.config
            checks.may_found_or_join(config)
            checks.may_be(request.role, config)
            checks.may_give_up_data(config, await self._status(), request.discard_local)
            join = (await late("join")).Join(self._module, self._folder, self._supervised)
            await self._become(join.run(request))
            mode = cluster_mode.load(self._folder.path)
            assert mode is not None
            return self._begun(mode.cluster, members_file.read(self._module.paths), join.notes)

    async def _become(self, attempt: Awaitable[None]) -> None:
        """Raises what kept this node from becoming a member. After the commit point nothing does: there is no way back."""
        try:
            await attempt
        except (PiccoloError, OSError) as error:
            if cluster_mode.load(self._folder.path) is None:
                raise
            self._module.log.error("became a member, and this failed then", reason=str(error))
        finally:
            self._is_ending = self._has_become_one()

    def _has_become_one(self) -> bool:
        """Whether this node is a member by now. If not, nobody here was started for another mode than it has."""
        if cluster_mode.load(self._folder.path) is not None:
            return True
        self._folder.restarts_done()
        return False

    def _begun(self, cluster: str, members: dict[str, KnownMember], notes: tuple[str, ...]) -> Cluster:
        self._module.spawn(self._restart(), name="restart as a member")
        shown = tuple(
            Member(
                node=name, role=each.role, address=each.address, rpc=each.rpc, api_url=each.api_url, state="silent",
                voter=False, leads_kernel=False, epoch=0, rev=0,
            )
            for name, each in sorted(members.items())
        )  # fmt: skip
        config = self._module.config
        return Cluster(
            mode="etcd", node=config.node.name, cluster=cluster, profile=self._folder.timing().profile, members=shown,
            notes=notes,
            etcd="external" if config.etcd.is_external else "managed",
        )  # fmt: skip

    async def _restart(self) -> None:
        """Whoever acts for the node alone ends first; this module last, for its end ends this very task.

        What fails here, and a crash, is made up for by the next life of this module.
        """
        try:
            await asyncio.to_thread(self._folder.settle_store)
            await self._supervised.restart(*ACTING)
            await asyncio.sleep(ANSWERED_S)
            await self._supervised.restart("api")
            self._folder.restarts_done()
        finally:
            await self._supervised.restart("consensus")

    async def _nobody(self, request: AddMember | RemoveMember | Leave | Recover | GetStoreView, caller: Caller) -> NoReturn:
        raise Conflict(f"{self._module.config.node.name} is a node alone", hint="`piccoloctl cluster init` founds a cluster")

    async def _status(self) -> CryptoStatus:
        return await self._module.call(GetCryptoStatus(), timeout_s=_STATUS_S)

    def _one_at_a_time(self) -> asyncio.Lock:
        if self._turn.locked() or self._is_ending:
            raise Busy("this node is just becoming a member of a cluster", hint="`piccoloctl cluster list` shows how it goes")
        return self._turn

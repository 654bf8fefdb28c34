"""`cluster recover --force`: a cluster whose etcd is lost for good begins anew with this member alone, under a new `gen`.

An etcd that is empty and has a fresh token stands for another one: it has another id, so that whoever knew the former one
believes nothing of it but a higher `gen` that names it. Its revisions begin at 1, and so do tokens. What keeps a former token
out is the `gen`: a session begins under one, every transaction of a session compares it, and the pair (gen, epoch), which
travels with data, is above all former ones. Here nothing lives that a former token started, which is proven before.

The rename of `recovery.json` is the commit point. Until then the former etcd lies aside and is put back by whatever fails, and
by the next start. `gen` is the last key that is written: nobody takes an etcd that is half filled for the cluster.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from piccolod import clock
from piccolod.cluster_mode import Mode
from piccolod.leadership.events import Memory
from piccolod.leadership.timing import wait_s
from piccolod.module import Module
from piccolod.protocol.base import Reply, Request
from piccolod.protocol.log import ExportLog
from services.consensus import cluster_records, members_file, seed
from services.consensus.etcd.client import Client
from services.consensus.etcd.upkeep import local_client
from services.consensus.gen import GenFile
from services.consensus.joining.folder import Folder
from services.consensus.joining.moving import Move, writable
from services.consensus.joining.place import etcd_settings, own_record
from services.consensus.joining.recovery_journal import Journal, JournalFile, Stage, finish, put_back, set_aside
from services.consensus.joining.supervised import Supervised

EXPORT_S: Final = 30.0


class Plan(msgspec.Struct, frozen=True):
    """`least_gen`: the highest one that is known of. `epochs`: the last known one of every resource that is known.

    `former`: the other members.
    """

    least_gen: int
    epochs: Mapping[str, int]
    former: tuple[str, ...]


class Recovering:
    """One attempt, once nothing acts here any more. `run` returns when it counts, or puts back what was and raises why."""

    def __init__(self, module: Module, mode: Mode) -> None:
        self._module = module
        self._folder = Folder(module.paths)
        self._supervised = Supervised(module.paths)
        self._mode = mode
        self._paths = module.paths
        self._timing = members_file.timing_of(module.paths)
        self._file = JournalFile(module.paths)

    async def run(self, plan: Plan) -> None:
        log, earlier = self._module.log, self._file.read()
        owed = () if earlier is None else earlier.former
        journal = Journal(
            stage=Stage.MOVING, aside=f"{self._paths.etcd_data.name}.before-{clock.wall_ms()}",
            etcd=self._paths.etcd_conf.read_text(), former=tuple(sorted({*plan.former, *owed})), owed=owed,
        )  # fmt: skip
        log.warning("recovers the cluster: this node begins it anew", former=plan.former, aside=journal.aside)
        await asyncio.to_thread(self._file.write, journal)
        try:
            await self._end_former(journal)
            memory = await self._begin(plan)
            await asyncio.to_thread(self._folder.owe_restarts)
            members = {self._mode.node: own_record(self._module)}
            begun = msgspec.structs.replace(journal, stage=Stage.BEGUN, members=members, memory=memory)
            await asyncio.to_thread(self._file.write, begun)
        except BaseException as error:
            found = self._file.read()
            if found is not None and found.stage is Stage.MOVING:
                log.error("could not recover the cluster", reason=str(error) or type(error).__name__)
                await put_back(self._paths, self._supervised, found)
                self._folder.restarts_done()
            raise
        log.warning("recovered the cluster", gen=memory.gen, former=plan.former)
        try:
            await asyncio.to_thread(finish, self._paths, begun)
        except OSError as error:  # there is no way back, and the next life of this module does it
            log.error("could not note yet that the cluster was recovered", reason=str(error))

    async def _end_former(self, journal: Journal) -> None:
        """What needed this member of etcd for its last heartbeat acts no more after W."""
        await asyncio.to_thread(self._folder.drop_etcd)
        await self._supervised.etcd_as_written()
        await self._supervised.etcd_gone()
        await asyncio.to_thread(set_aside, self._paths, journal)
        await asyncio.sleep(wait_s(self._timing.span_s))

    async def _begin(self, plan: Plan) -> Memory:
        token = f"piccolo-{self._mode.cluster}-{secrets.token_hex(4)}"
        settings = etcd_settings(self._module, self._folder, token, self._timing, {})
        await asyncio.to_thread(self._folder.keep_etcd, settings)
        await self._supervised.etcd_as_written()
        await self._supervised.etcd_ready()
        client = local_client(settings)
        try:
            return await self._fill(client, plan)
        finally:
            await client.close()

    async def _fill(self, client: Client, plan: Plan) -> Memory:
        prefix, node = cluster_records.prefix(self._mode.cluster), self._mode.node
        await writable(client, prefix)
        gen = await asyncio.to_thread(GenFile(self._paths.consensus / "gen").next, plan.least_gen)
        move = Move(client, prefix, gen, self._export)
        await move.begin()
        await move.finish(hold_s=0.0)
        await seed.put_released(client, prefix, plan.epochs, node, self._timing.span_s)
        await seed.put_node(client, prefix, node, own_record(self._module))
        await move.check(hold_s=0.0)
        await seed.put_gen(client, prefix, gen)
        return await seed.memory_of(client, prefix, gen)

    async def _export(self, request: Request[Reply]) -> Reply:
        asked: Any = msgspec.structs.replace(request, recovers=True) if isinstance(request, ExportLog) else request
        answer: Reply = await self._module.call(asked, timeout_s=EXPORT_S)
        return answer

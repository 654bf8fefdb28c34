"""The commands of `piccolod/protocol/log.py`, and the hint that the log has grown. For a member of a cluster alone."""

from __future__ import annotations

import asyncio

from piccolod.bus.caller import Caller
from piccolod.etcd_conf import QUOTA_BYTES
from piccolod.leadership.events import Applied
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.module import Module
from piccolod.protocol import log
from piccolod.protocol.base import Nothing
from piccolod.protocol.events import ControlRevChanged
from services.consensus import standing
from services.consensus.control_log import ControlLog
from services.consensus.etcd_leaser import EtcdLeaser
from services.consensus.log_space import Space
from services.consensus.log_trim import Trim, attempt


class LogService:
    def __init__(self, module: Module, leaser: EtcdLeaser, quota_bytes: int = QUOTA_BYTES, *, compacts: bool = True) -> None:
        self._module = module
        self._leaser = leaser
        self.space = Space(leaser.driver.store.client, quota_bytes)
        self._log = ControlLog(leaser, self.space)
        self._trim = Trim(leaser, self._log, compacts=compacts)
        self._trimming = asyncio.Lock()
        self._trimmed_in = 0  # the token of the term in which it was done last

    def start(self) -> None:
        module = self._module
        module.serve(log.GetHead, self._head)
        module.serve(log.Append, self._append)
        module.serve(log.GetEntries, self._entries)
        module.serve(log.GetSnapshot, self._snapshot)
        module.serve(log.GetSnapshotChunk, self._snapshot_chunk)
        module.serve(log.PutSnapshot, self._put_snapshot)
        module.serve(log.GetKeyset, self._keyset)
        module.serve(log.PutKeyset, self._put_keyset)
        module.spawn(self.space.run(), name="space of etcd")
        self._leaser.head_moved = self._tell_head

    def applied(self, rev: int) -> None:
        """The store of this node is verified up to there."""
        self._leaser.driver.feed(Applied(rev))

    def _tell_head(self) -> None:
        head = self._leaser.driver.facts.head
        if head is not None:
            self._module.publish(ControlRevChanged(rev=head.value.rev))

    def changed(self) -> None:
        """Who leads may be another one: takes up what a former leader has left to trim."""
        driver = self._leaser.driver
        term = driver.state.terms.get(RESOURCE_KERNEL)
        if term is not None and term.token != self._trimmed_in and standing.leads(driver.state, RESOURCE_KERNEL):
            self._begin_trim(term.token)

    def _begin_trim(self, token: int) -> None:
        self._trimmed_in = token
        self._module.spawn(self._run_trim(token), name="trim")

    async def _run_trim(self, token: int) -> None:
        async with self._trimming:
            failed = await attempt(self._trim, token)
            await self.space.look()
        if failed is not None:
            self._module.log.warning("did not trim the log", reason=failed.detail)

    async def _head(self, request: log.GetHead, caller: Caller) -> log.Head:
        return await self._log.head()

    async def _append(self, request: log.Append, caller: Caller) -> Nothing:
        await self._log.append(request)
        return Nothing()

    async def _entries(self, request: log.GetEntries, caller: Caller) -> log.Entries:
        return await self._log.entries(request)

    async def _snapshot(self, request: log.GetSnapshot, caller: Caller) -> log.SnapshotInfo:
        return await self._log.snapshot()

    async def _snapshot_chunk(self, request: log.GetSnapshotChunk, caller: Caller) -> log.Chunk:
        return await self._log.snapshot_chunk(request)

    async def _put_snapshot(self, request: log.PutSnapshot, caller: Caller) -> Nothing:
        if await self._log.put_snapshot(request):
            self._begin_trim(request.token)
        return Nothing()

    async def _keyset(self, request: log.GetKeyset, caller: Caller) -> log.Keyset:
        return await self._log.keyset()

    async def _put_keyset(self, request: log.PutKeyset, caller: Caller) -> Nothing:
        await self._log.put_keyset(request)
        return Nothing()

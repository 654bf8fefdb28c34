"""Commands on the log as a whole: its head, its entries, check and repair, and what consensus asks of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from piccolod.errors import Conflict, Invalid, PiccoloError
from piccolod.module import Caller, Module
from piccolod.protocol.log import Chunk, Drain, Drained, ExportChunk, Exported, ExportLog
from piccolod.protocol.persistence import (
    Check,
    GetLog,
    GetRevision,
    LogEntries,
    Repair,
    Revision,
    StoreReport,
)
from piccolod.protocol.recovery import GetLogEnd, LogEnd, TakeEntries
from services.persistence import history
from services.persistence.chunks import Chunks
from services.persistence.vault import Vault

LOG_LIMIT: Final = 1000
HOLD_MOST_S: Final = 30.0


class LogCommands:
    """`announced`: the last rev that a hint named. `repair` and `judge` are the service's, which the lead hangs on."""

    def __init__(
        self,
        module: Module,
        vault: Vault,
        announced: Callable[[], int],
        repair: Callable[[], Awaitable[StoreReport]],
        judge: Callable[[], None],
        *,
        alone: bool,
    ) -> None:
        self._db = module.paths.control_db
        self._vault = vault
        self._announced = announced
        self._repair_store = repair
        self._judge = judge
        self._alone = alone
        self._chunks = Chunks()

    def serve(self, module: Module) -> None:
        module.serve(GetRevision, self._revision)
        module.serve(GetLog, self._log)
        module.serve(Check, self._check)
        module.serve(Repair, self._repair)
        module.serve(Drain, self._drain)
        module.serve(ExportLog, self._export)
        module.serve(GetLogEnd, self._end)
        module.serve(TakeEntries, self._take)
        module.serve(ExportChunk, self._chunk)

    async def _revision(self, request: GetRevision, caller: Caller) -> Revision:
        await self._vault.opened.wait()
        store, announced = self._vault.store, self._announced()
        if store is None:
            return Revision(rev=self._vault.locked_end()[0], announced=announced, verified=0, digest="", locked=True)
        state = store.state
        return Revision(rev=state.rev, announced=announced, verified=state.rev, digest=state.digest.hex(), locked=False)

    async def _log(self, request: GetLog, caller: Caller) -> LogEntries:
        await self._vault.keyset_made()
        if not 1 <= request.limit <= LOG_LIMIT:
            raise Invalid(f"limit must be 1 to {LOG_LIMIT}, not {request.limit}")
        store = self._vault.store
        key = store.key if store is not None else None
        return LogEntries(entries=await asyncio.to_thread(history.read, self._db, request.after, request.limit, key))

    async def _check(self, request: Check, caller: Caller) -> StoreReport:
        await self._vault.opened.wait()
        report = await self._vault.check()
        if not report.ok:
            with contextlib.suppress(PiccoloError):  # what cannot be healed now stays named by health
                await self._vault.heal()
        self._judge()
        return report

    async def _repair(self, request: Repair, caller: Caller) -> StoreReport:
        await self._vault.opened.wait()
        return await self._repair_store()

    async def _drain(self, request: Drain, caller: Caller) -> Drained:
        """Never refuses, and waits for no store that is being opened: nothing of it is under way."""
        store, commits = self._vault.store, self._vault.commits
        if store is None or commits is None:
            rev, digest = self._vault.locked_end()
            return Drained(rev=rev, digest=digest)
        await commits.hold(min(request.park_s, HOLD_MOST_S))
        return Drained(rev=store.state.rev, digest=store.state.digest)

    async def _end(self, request: GetLogEnd, caller: Caller) -> LogEnd:
        """As it is proven in memory; when its last entry was written says the file, which is never ahead of that."""
        await self._vault.opened.wait()
        chain = self._vault.end().fork()
        at_ms = await asyncio.to_thread(history.written_ms, self._db, chain.rev)
        return LogEnd(
            rev=chain.rev, digest=chain.digest, gen=chain.gen, epoch=chain.epoch, at_ms=at_ms,
            locked=self._vault.store is None,
        )  # fmt: skip

    async def _take(self, request: TakeEntries, caller: Caller) -> LogEnd:
        await self._vault.opened.wait()
        await self._vault.take(request.entries, request.keyset)
        return await self._end(GetLogEnd(), caller)

    async def _export(self, request: ExportLog, caller: Caller) -> Exported:
        from services.persistence import export  # a node alone needs it once in its life, if at all

        await self._vault.opened.wait()
        if request.recovers and self._alone:
            raise Conflict("this node is alone, and its log is its own")
        if not self._alone and not request.recovers:
            raise Conflict(
                "this node is a member of a cluster already, and its log is there", hint="`piccoloctl cluster list` shows it"
            )
        store, commits = self._vault.unlocked()
        keyset = self._vault.passwords.keyset
        assert keyset is not None
        await self._vault.file_all()
        if request.hold_s > 0:
            await commits.quiet(min(request.hold_s, HOLD_MOST_S))
        at = export.position(store, request.after, self._db)
        exported, raw = await asyncio.to_thread(
            export.export, self._db, store.meta.cluster, store.key, keyset, at, request.after, request.limit
        )
        if exported.snapshot is not None:
            self._chunks.keep(exported.snapshot.rev, raw)
        return exported

    async def _chunk(self, request: ExportChunk, caller: Caller) -> Chunk:
        self._vault.unlocked()
        return Chunk(data=self._chunks.take(request.rev, request.index))

"""The commit point of a node alone: the transaction on its own disk, durable when it returns.

The gate is looked at again inside the transaction, right before its commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from piccolod import clock
from piccolod.errors import PiccoloError, StoreFull, StoreUnavailable, TermOver
from piccolod.leadership.gate import Token
from piccolod.leadership.resources import RESOURCE_KERNEL
from services.persistence.commit_point import Gatekeeper
from services.persistence.ledger import Batch, Folded
from services.persistence.store import Store

T = TypeVar("T")


class LocalCommit:
    """`gate_of_thread`: a gate reads its page without a lock, so the thread that commits has one of its own.

    `on_trouble(None)`: the disk took a write again.
    """

    proves_term = False

    def __init__(
        self,
        store: Store,
        gate_of_thread: Gatekeeper,
        on_commit: Callable[[Sequence[Folded]], None],
        on_trouble: Callable[[PiccoloError | None], None],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._gate = gate_of_thread
        self._on_commit = on_commit
        self._on_trouble = on_trouble
        self._log = log
        self._trouble: PiccoloError | None = None  # what the disk said last, until it takes something again
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")

    @property
    def in_doubt(self) -> bool:
        return self._store.in_doubt

    async def settle(self) -> None:
        if self._store.in_doubt and not await self._settle():
            raise self._refusal()

    async def stand_at_head(self, token: Token) -> None:
        """What is on this disk is all there is."""

    async def write(self, batch: Batch, token: Token) -> None:
        try:
            await self.in_thread(lambda: self._store.append(batch, lambda: self._gate.still(RESOURCE_KERNEL, token)))
        except (StoreFull, StoreUnavailable) as error:
            self._disk_says(error)
            if not await self._settle() or self._store.chain.rev < batch.items[-1].header.rev:
                raise
            self._disk_says(None)
            return
        except PiccoloError as error:
            self._disk_says(error)
            raise
        self._on_commit(self._store.fold(batch.items))
        self._disk_says(None)

    async def snapshot_when_due(self) -> None:
        """A snapshot only bounds the replay: without it all goes on."""
        if not self._store.wants_snapshot():
            return
        snapshot = self._store.snapshot(clock.wall_ms())
        try:
            await self.in_thread(lambda: self._store.keep_snapshot(snapshot))
        except PiccoloError as error:
            self._log.warning("could not keep a snapshot", rev=snapshot.rev, reason=error.detail)

    async def recover(self, wanted: Callable[[], bool]) -> None:
        if self._trouble is None or self._store.in_doubt:
            return
        try:
            await self.in_thread(self._store.probe)
        except PiccoloError as error:
            trouble: PiccoloError | None = error
        else:
            trouble = None
        if wanted():
            self._disk_says(trouble)

    def refusal(self, over: TermOver) -> Exception:
        return over if self._trouble is None else self._refusal()

    async def close(self) -> None:
        # Drained, also of a probe that nobody waits for any more: SQLite must not be closed under a call.
        await asyncio.to_thread(self._thread.shutdown)
        self._store.close()

    async def in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _settle(self) -> bool:
        """False while the disk does not recover."""
        try:
            found = await self.in_thread(self._store.settle)
        except PiccoloError as error:
            self._disk_says(error)
            return False
        if found:
            self._log.warning("a write whose sync had failed is durable after all", rev=found[-1].header.rev)
            self._on_commit(self._store.fold_found(found))
        return True

    def _disk_says(self, error: PiccoloError | None) -> None:
        """`None`: it took a write."""
        if error is not None or self._trouble is not None:
            self._trouble = error
            self._on_trouble(error)

    def _refusal(self) -> PiccoloError:
        """The disk's own reason, also when the kernel was given away for it: who asks for a leader would be misled."""
        last = self._trouble
        hint = "it is tried again by itself, each second"
        if isinstance(last, StoreFull):
            return StoreFull(last.detail, hint=f"{last.hint}; {hint}")
        return StoreUnavailable(last.detail if last else f"{self._store.db}: an earlier write failed", hint=hint)

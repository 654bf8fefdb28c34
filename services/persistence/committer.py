"""Group commit: writers that come while a transaction is on its way to the disk share the next one, each with its own rev.

Refused before anything is written: not leader, a precondition, too large. The gate is looked at when a batch begins, again
inside the transaction right before its commit, and once more before anybody is told yes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import structlog

from piccolod import clock
from piccolod.errors import Locked, NotLeader, PiccoloError, StoreFull, StoreUnavailable, TermOver
from piccolod.leadership.gate import Token
from piccolod.leadership.resources import RESOURCE_KERNEL
from services.persistence.store import Batch, Folded, Store, Write

T = TypeVar("T")

# Sealing happens on the event loop, so a batch is bounded: 64 writes take about a millisecond.
BATCH_WRITES: Final = 64
BATCH_BYTES: Final = 1024 * 1024
WAITING_WRITES: Final = 1024


class Gatekeeper(Protocol):
    """The part of `piccolod.leadership.gate.Gate` that is used here."""

    def check(self, resource: str) -> Token: ...
    def still(self, resource: str, token: Token) -> None: ...


class Outcome(NamedTuple):
    """`repeated`: the write was committed earlier, at `rev`, and nothing was written now."""

    rev: int
    repeated: bool


class _Waiting:
    __slots__ = ("answer", "write")

    def __init__(self, write: Write, answer: asyncio.Future[Outcome]) -> None:
        self.write = write
        self.answer = answer

    @property
    def size_bytes(self) -> int:
        return sum(len(memoryview(op.document)) for op in self.write.ops)


class Committer:
    """Owns the store while it is unlocked. `on_commit` is called after each transaction that became visible.

    A gate reads its page without a lock: the thread that commits has one of its own.
    """

    def __init__(
        self,
        store: Store,
        gate: Gatekeeper,
        gate_of_thread: Gatekeeper,
        on_commit: Callable[[Sequence[Folded]], None],
        on_trouble: Callable[[PiccoloError | None], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._gate = gate
        self._gate_of_thread = gate_of_thread
        self._on_commit = on_commit
        self._on_trouble = on_trouble
        self._spawn = spawn
        self._log = log
        self._waiting: deque[_Waiting] = deque()
        self._flushing: asyncio.Task[None] | None = None
        self._closed: PiccoloError | None = None
        self._trouble: PiccoloError | None = None  # what the disk said last, until it takes something again
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")

    async def commit(self, write: Write) -> Outcome:
        """The rev that holds the write. Raises Conflict, Invalid, Locked, NotLeader, TooLarge, StoreFull, StoreUnavailable.

        A caller that gives up (cancellation) does not take its write back: the idempotency key tells it later.
        """
        if self._closed is not None:
            raise self._closed
        if len(self._waiting) >= WAITING_WRITES:
            raise StoreUnavailable("too many writes are waiting for the disk", hint="try again in a moment")
        waiting = _Waiting(write, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._begin()
        return await waiting.answer

    def _begin(self) -> None:
        if self._flushing is None:
            self._flushing = self._spawn(self._flush_all())

    async def recover(self) -> None:
        """Asks a disk that refused a write again: what is on it, and whether it takes one now. Safe to call at any time."""
        if self._store.in_doubt and self._closed is None:
            self._begin()
            if self._flushing is not None:
                await asyncio.wait([self._flushing])
        if self._trouble is None or self._store.in_doubt or self._closed is not None:
            return
        try:
            await self.in_thread(self._store.probe)
        except PiccoloError as error:
            trouble: PiccoloError | None = error
        else:
            trouble = None
        if self._closed is None:
            self._disk_says(trouble)

    async def close(self, reason: PiccoloError | None = None) -> None:
        """Refuses what comes from now on, ends what is under way, and lets go of the disk. Idempotent."""
        self._closed = self._closed or reason or Locked("the control store is locked", hint="unlock it first")
        while self._flushing is not None:
            await asyncio.wait([self._flushing])
        # Drained, also of a probe that nobody waits for any more: SQLite must not be closed under a call.
        await asyncio.to_thread(self._thread.shutdown)
        self._store.close()

    async def in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _flush_all(self) -> None:
        try:
            if self._store.in_doubt:
                await self._settle()
            while self._waiting:
                await self._flush(self._next())
        finally:
            self._flushing = None
            if self._waiting:
                # Only after a bug in `_flush`: whoever waits must not wait for ever.
                self._refuse(self._waiting, StoreUnavailable("the write was given up"))
                self._waiting.clear()

    def _next(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        size = 0
        while self._waiting and len(taken) < BATCH_WRITES and size < BATCH_BYTES:
            waiting = self._waiting.popleft()
            if not waiting.answer.done():
                taken.append(waiting)
                size += waiting.size_bytes
        return taken

    async def _flush(self, taken: list[_Waiting]) -> None:
        try:
            if self._store.in_doubt and not await self._settle():
                raise self._refusal()
            token = self._gate.check(RESOURCE_KERNEL)
            batch = Batch(self._store, token.gen, token.epoch)
            outcomes = [(waiting, _decided(batch, waiting.write)) for waiting in taken]
            if batch.items:
                await self._write(batch, token)
            self._gate.still(RESOURCE_KERNEL, token)
        except TermOver as over:
            self._refuse(taken, not_leader(over) if self._trouble is None else self._refusal())
        except PiccoloError as error:
            self._refuse(taken, error)
        except BaseException as error:
            self._refuse(taken, StoreUnavailable("the write was given up in the middle: its outcome is unknown"))
            if not isinstance(error, asyncio.CancelledError):
                self._log.error("a commit failed in a way that is not known", error=type(error).__name__)
            raise
        else:
            for waiting, outcome in outcomes:
                if isinstance(outcome, PiccoloError):
                    self._refuse([waiting], outcome)
                elif not waiting.answer.done():
                    waiting.answer.set_result(outcome)
            await self._snapshot_when_due()

    async def _write(self, batch: Batch, token: Token) -> None:
        try:
            await self.in_thread(lambda: self._store.append(batch, lambda: self._gate_of_thread.still(RESOURCE_KERNEL, token)))
        except (StoreFull, StoreUnavailable) as error:
            self._disk_says(error)
            if not await self._settle() or self._store.chain.rev < batch.items[-1].header.rev:
                raise
            self._disk_says(None)
            return
        except PiccoloError as error:
            self._disk_says(error)
            raise
        self._on_commit(self._store.fold(batch))
        self._disk_says(None)

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

    async def _snapshot_when_due(self) -> None:
        """A snapshot only bounds the replay: without it all goes on."""
        if not self._store.wants_snapshot():
            return
        snapshot = self._store.snapshot(clock.wall_ms())
        try:
            await self.in_thread(lambda: self._store.keep_snapshot(snapshot))
        except PiccoloError as error:
            self._log.warning("could not keep a snapshot", rev=snapshot.rev, reason=error.detail)

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

    @staticmethod
    def _refuse(taken: Sequence[_Waiting] | deque[_Waiting], error: PiccoloError) -> None:
        for waiting in taken:
            if not waiting.answer.done():
                waiting.answer.set_exception(error)


def _decided(batch: Batch, write: Write) -> Outcome | PiccoloError:
    """The outcome, or the refusal. Told only after the batch is durable: a conflict with a neighbour is none before that."""
    try:
        repeated = batch.knows(write)
        return Outcome(batch.add(write), repeated)
    except PiccoloError as error:
        return error


def not_leader(over: TermOver) -> NotLeader:
    return NotLeader(
        f"this node does not lead the control store: {over.reason}",
        hint="repeat the write with the same idempotency key once a leader is known",
    )

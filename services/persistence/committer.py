"""Group commit: writers that come while a transaction is on its way share the next one, each with its own rev.

Refused before anything is written: not leader, a precondition, too large. The gate is looked at when a batch begins, and once
more before anybody is told yes, where the commit point did not prove the term itself.

In a cluster a write that meets a shut gate while no other leader is known is parked for a moment and decided again: a
switchover costs latency and no errors.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, NamedTuple

import structlog

from piccolod import clock
from piccolod.errors import (
    Busy,
    LeaderHint,
    Locked,
    NoLeader,
    NotLeader,
    OutcomeUnknown,
    PiccoloError,
    StoreUnavailable,
    TermOver,
)
from piccolod.leadership.resources import RESOURCE_KERNEL
from services.persistence.commit_point import CommitPoint, Gatekeeper, HeadMoved
from services.persistence.ledger import Batch, Ledger, Write

# Sealing happens on the event loop, so a batch is bounded: 64 writes take about a millisecond. In bytes it stays below
# what one transaction of etcd takes (piccolod/protocol/log.py), with the largest entry as the last one.
BATCH_WRITES: Final = 64
BATCH_BYTES: Final = 768 * 1024
WAITING_WRITES: Final = 1024
MOST_TRIES: Final = 8
# The gate is a page in memory that tells nobody when it opens: looked at this often while somebody is parked.
PARKED_LOOK_S: Final = 0.01
# An append that is under way is worth this wait to who hands over; what ends the token ends it otherwise.
DRAIN_WAIT_S: Final = 0.5
# A log that moves must be at its end: this is how long a slow disk may take for what is under way.
QUIET_WAIT_S: Final = 10.0
_DRAIN_LOOK_S: Final = 0.002
# Writers that keep coming keep the flush going: who asks a disk again has other things to do beside.
_RECOVER_WAIT_S: Final = 1.0


class Outcome(NamedTuple):
    """`repeated`: the write was committed earlier, at `rev`, and nothing was written now."""

    rev: int
    repeated: bool


class _Waiting:
    __slots__ = ("answer", "parked_until", "write")

    def __init__(self, write: Write, answer: asyncio.Future[Outcome], parked_until: float) -> None:
        self.write = write
        self.answer = answer
        self.parked_until = parked_until

    @property
    def size_bytes(self) -> int:
        return sum(len(memoryview(op.document)) + len(op.collection) + len(op.id) for op in self.write.ops)


class Committer:
    """Owns the ledger while it is unlocked.

    `leader`: who leads instead, as far as it is known. `park_s`: how long a write waits for a gate to open; 0: not at all.
    """

    def __init__(
        self,
        ledger: Ledger,
        point: CommitPoint,
        gate: Gatekeeper,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        log: structlog.typing.FilteringBoundLogger,
        *,
        leader: Callable[[], LeaderHint | None] = lambda: None,
        park_s: float = 0.0,
    ) -> None:
        self._ledger = ledger
        self._point = point
        self._gate = gate
        self._spawn = spawn
        self._log = log
        self._leader = leader
        self._park_s = park_s
        self._waiting: deque[_Waiting] = deque()
        self._flushing: asyncio.Task[None] | None = None
        self._writing = False
        self._held_until = 0.0
        self._closed: PiccoloError | None = None

    async def commit(self, write: Write) -> Outcome:
        """The rev that holds the write. Raises Conflict, Invalid, Locked, NotLeader, NoLeader, TooLarge, StoreFull,
        StoreUnavailable; OutcomeUnknown, which only a retry with its idempotency key resolves.

        A caller that gives up (cancellation) does not take its write back: the idempotency key tells it later.
        """
        if self._closed is not None:
            raise self._closed
        if len(self._waiting) >= WAITING_WRITES:
            raise StoreUnavailable("too many writes are waiting for the disk", hint="try again in a moment")
        waiting = _Waiting(write, asyncio.get_running_loop().create_future(), clock.now() + self._park_s)
        self._waiting.append(waiting)
        self._begin()
        return await waiting.answer

    def _begin(self) -> None:
        if self._flushing is None:
            self._flushing = self._spawn(self._flush_all())

    async def recover(self) -> None:
        """Asks a disk that refused a write again: what is on it, and whether it takes one now. Safe to call at any time.

        A doubt of the cluster's is left to the next write, which compares the same head.
        """
        if self._point.in_doubt and not self._point.proves_term and self._closed is None:
            self._begin()
            if self._flushing is not None:
                await asyncio.wait([self._flushing], timeout=_RECOVER_WAIT_S)
        if self._closed is None:
            await self._point.recover(lambda: self._closed is None)

    async def hold(self, hold_s: float) -> None:
        """Parks what waits and what comes, and returns once nothing is under way: at most DRAIN_WAIT_S later.

        A write that is in doubt is no reason to wait, and none to refuse: whoever ends its token ends it.
        """
        now = clock.now()
        self._held_until = max(self._held_until, now + hold_s)
        while self._writing and self._flushing and not self._point.in_doubt and clock.now() < now + DRAIN_WAIT_S:
            await asyncio.wait([self._flushing], timeout=_DRAIN_LOOK_S)

    async def quiet(self, hold_s: float) -> None:
        """Parks like `hold`, and returns only once the ledger has all that is or may yet become durable. Then `hold_s` begins.

        Raises Busy when a write goes on for QUIET_WAIT_S, or is in doubt for as long; then nothing is parked any more.
        """
        give_up_at = clock.now() + QUIET_WAIT_S
        while True:
            self._held_until = max(self._held_until, clock.now() + hold_s)
            if not self._writing and not self._point.in_doubt:
                return
            if clock.now() >= give_up_at:
                self._held_until = 0.0
                what = "is in doubt" if self._point.in_doubt else "is under way"
                raise Busy(f"a write of the control store {what}", hint="try again once the disk has caught up")
            await asyncio.sleep(_DRAIN_LOOK_S)

    async def close(self, reason: PiccoloError | None = None) -> None:
        """Refuses what comes from now on, ends what is under way, and lets go of the disk. Idempotent."""
        self._closed = self._closed or reason or Locked("the control store is locked", hint="unlock it first")
        while self._flushing is not None:
            await asyncio.wait([self._flushing])
        await self._point.close()

    async def _flush_all(self) -> None:
        try:
            if self._point.in_doubt:
                await self._settle_first()
            tries = 0
            while self._waiting:
                if await self._parked():
                    continue
                moved = await self._flush(self._next(), last_try=tries >= MOST_TRIES)
                tries = tries + 1 if moved else 0
        finally:
            self._flushing = None
            if self._waiting:
                # Only after a bug in `_flush`: whoever waits must not wait for ever.
                self._refuse(self._waiting, StoreUnavailable("the write was given up"))
                self._waiting.clear()

    async def _settle_first(self) -> None:
        self._writing = True  # what is found durable is not shown yet
        try:
            await self._point.settle()
        except PiccoloError as error:
            self._log.debug("what was written last is still in doubt", reason=error.detail)
        finally:
            self._writing = False

    async def _parked(self) -> bool:
        """Whether the writes have to wait: then a moment of that has passed."""
        if clock.now() >= self._held_until:
            return False
        if self._point.in_doubt and not self._point.proves_term:
            await self._settle_first()  # who holds waits for that
        await asyncio.sleep(PARKED_LOOK_S)
        if self._closed is not None or self._leader() is not None:
            self._held_until = 0.0
        return True

    def _next(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        size = 0
        while self._waiting and len(taken) < BATCH_WRITES and size < BATCH_BYTES:
            waiting = self._waiting.popleft()
            if not waiting.answer.done():
                taken.append(waiting)
                size += waiting.size_bytes
        return taken

    async def _flush(self, taken: list[_Waiting], *, last_try: bool) -> bool:
        """True: the head had moved, and what was taken is decided again."""
        try:
            self._writing = True
            try:
                outcomes = await self._decide_and_write(taken)
            finally:
                self._writing = False
        except HeadMoved:
            if not last_try:
                self._waiting.extendleft(reversed(taken))
                return True
            self._refuse(taken, StoreUnavailable("the head of the log moves all the time", hint="try again in a moment"))
        except TermOver as over:
            await self._shut(taken, self._point.refusal(over))
        except (NotLeader, NoLeader) as error:
            await self._shut(taken, error)
        except PiccoloError as error:
            self._refuse(taken, error)
        except BaseException as error:
            self._refuse(taken, OutcomeUnknown("the write was given up in the middle", hint="try again with its key"))
            if not isinstance(error, asyncio.CancelledError):
                self._log.error("a commit failed in a way that is not known", error=type(error).__name__)
            raise
        else:
            self._answer(outcomes)
            await self._point.snapshot_when_due()
        return False

    async def _decide_and_write(self, taken: Sequence[_Waiting]) -> list[tuple[_Waiting, Outcome | PiccoloError]]:
        await self._point.settle()
        token = self._gate.check(RESOURCE_KERNEL)
        await self._point.stand_at_head(token)
        batch = Batch(self._ledger, token.gen, token.epoch)
        outcomes = [(waiting, _decided(batch, waiting.write)) for waiting in taken]
        if batch.items:
            await self._point.write(batch, token)
        if not (batch.items and self._point.proves_term):
            self._gate.still(RESOURCE_KERNEL, token)
        return outcomes

    def _answer(self, outcomes: Sequence[tuple[_Waiting, Outcome | PiccoloError]]) -> None:
        for waiting, outcome in outcomes:
            if isinstance(outcome, PiccoloError):
                self._refuse([waiting], outcome)
            elif not waiting.answer.done():
                waiting.answer.set_result(outcome)

    async def _shut(self, taken: list[_Waiting], reason: Exception) -> None:
        """Nothing of `taken` was sent. Refused where somebody else leads or the patience is over, parked otherwise."""
        error = not_leader(reason) if isinstance(reason, TermOver) else reason
        assert isinstance(error, PiccoloError)
        parks = isinstance(error, NotLeader | NoLeader) and error.leader is None and self._park_s > 0
        other = self._leader()
        if not parks or self._closed is not None:
            self._refuse(taken, self._closed if parks and self._closed is not None else error)
        elif other is not None:
            self._refuse(taken, NotLeader(f"{other.node} leads the control store", hint="write there", leader=other))
        else:
            now = clock.now()
            late = [waiting for waiting in taken if waiting.parked_until <= now]
            self._refuse(late, NoLeader(error.detail, hint="no leader is known; try again in a moment", retry_after_s=1.0))
            self._waiting.extendleft(waiting for waiting in reversed(taken) if waiting.parked_until > now)
            await asyncio.sleep(PARKED_LOOK_S)

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

"""The commit point of a member: one etcd transaction that compares the token, the session and the head (`consensus.append`).

It is the only one: what it took is durable on a quorum and shown at once; this node's file follows, and is healed from etcd.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from piccolod import clock
from piccolod.errors import (
    Conflict,
    DeadlineExceeded,
    Failed,
    NotLeader,
    OutcomeUnknown,
    PiccoloError,
    StoreFull,
    TermOver,
    Unavailable,
)
from piccolod.leadership.gate import Token
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.protocol.log import Append, GetEntries, GetHead
from services.persistence.catch_up import Ask, CatchUp, on_the_wire
from services.persistence.commit_point import Gatekeeper, HeadMoved
from services.persistence.ledger import Batch, Folded, Ledger
from services.persistence.outcome import Sent, Verdict, judge

APPEND_S: Final = 2.0
# With the append itself less than what a caller waits (5 s): nobody's deadline passes where the answer can be had.
RESOLVE_S: Final = 2.0
RESOLVE_PAUSE_S: Final = 0.05
_LEAST_S: Final = 0.1
# It may have been sent, by a consensus that did not live to tell.
UNKNOWN: Final = (OutcomeUnknown, DeadlineExceeded, Unavailable, Failed)


class ClusterCommit:
    """`on_full`: etcd takes no more, which a snapshot and a trim may change."""

    proves_term = True

    def __init__(
        self,
        node: str,
        ledger: Ledger,
        catch_up: CatchUp,
        ask: Ask,
        gate: Gatekeeper,
        on_commit: Callable[[Sequence[Folded]], None],
        on_full: Callable[[], None],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._node = node
        self._ledger = ledger
        self._catch_up = catch_up
        self._ask = ask
        self._gate = gate
        self._on_commit = on_commit
        self._on_full = on_full
        self._log = log
        self._in_doubt = False
        self._stood: Token | None = None  # the term in which the head was read

    @property
    def in_doubt(self) -> bool:
        return self._in_doubt

    async def settle(self) -> None:
        """Nothing waits for a write in doubt: the next one compares the same head, so that at most one of them happens."""
        self._catch_up.copy.check_room()

    async def stand_at_head(self, token: Token) -> None:
        if self._stood != token or self._in_doubt:
            await self._catch_up.to_head()
            self._stood, self._in_doubt = token, False

    async def write(self, batch: Batch, token: Token) -> None:
        append = Append(
            token=token.token,
            head_rev=self._ledger.state.rev,
            head_digest=self._ledger.state.digest,
            entries=tuple(on_the_wire(item.sealed) for item in batch.items),
        )
        async with self._catch_up.lock:
            if batch.items[0].header.rev == self._ledger.state.rev + 1 and await self._append(append, token):
                self._on_commit(self._ledger.fold(batch.items))
                self._catch_up.copy.submit(batch.items)
                return
        await self._catch_up.to_head()
        raise HeadMoved

    async def _append(self, append: Append, token: Token) -> bool:
        """False: certainly not written, for the head is another one."""
        try:
            await self._ask(append, timeout_s=APPEND_S)
        except Conflict:
            return False
        except NotLeader as error:
            if error.leader is None or error.leader.node != self._node:
                raise
            raise NotLeader(
                "this node's term is another one by now", hint="try again in a moment"
            ) from None  # and its page says so in a moment
        except StoreFull:
            self._on_full()
            raise
        except UNKNOWN as error:
            self._log.warning("an append's outcome is unknown and is being read", rev=append.head_rev + 1, reason=error.detail)
            self._in_doubt = True
            committed = await self._resolved(append, token, error)
            self._in_doubt = False
            return committed
        return True

    async def _resolved(self, append: Append, token: Token, doubt: PiccoloError) -> bool:
        """Whether it was written; `doubt` is why that is not known yet.

        Raises NotLeader when it never will be, OutcomeUnknown when that cannot be known in time.
        """
        sent = Sent.of(append)
        give_up_at = clock.now() + RESOLVE_S
        while True:
            verdict = await self._verdict(sent, give_up_at)
            if verdict in (Verdict.COMMITTED, Verdict.REFUSED):
                return verdict is Verdict.COMMITTED
            if verdict is Verdict.OVER:
                self._in_doubt = False
                raise NotLeader("the term ended before the write was made", hint="try again: another term begins")
            if verdict is Verdict.OPEN and await self._sent_again(append, token, give_up_at):
                return True
            if clock.now() >= give_up_at:
                raise OutcomeUnknown(
                    f"the write of rev {sent.last_rev} was sent and its end is not known: {doubt.detail}",
                    hint="repeat it with the same idempotency key",
                )
            await asyncio.sleep(RESOLVE_PAUSE_S)

    async def _verdict(self, sent: Sent, give_up_at: float) -> Verdict | None:
        """None: the head cannot be read now."""
        try:
            head = await self._ask(GetHead(), timeout_s=_left_s(give_up_at))
            verdict = judge(sent, head)
            if verdict is Verdict.BEYOND:
                page = await self._ask(GetEntries(after=sent.last_rev - 1, limit=1), timeout_s=_left_s(give_up_at))
                if page.entries and page.entries[0].rev == sent.last_rev:
                    return Verdict.COMMITTED if page.entries[0].digest == sent.last_digest else Verdict.REFUSED
        except PiccoloError:
            return None
        return verdict

    async def _sent_again(self, append: Append, token: Token, give_up_at: float) -> bool:
        """The very same bytes: if the first ones were written after all this is a Conflict, and the head tells."""
        try:
            self._gate.still(RESOURCE_KERNEL, token)
            await self._ask(append, timeout_s=_left_s(give_up_at))
        except (PiccoloError, TermOver):
            return False
        return True

    async def snapshot_when_due(self) -> None:
        """Taken beside the commits: see etcd_snapshot.py."""

    async def recover(self, wanted: Callable[[], bool]) -> None:
        await self._catch_up.copy.recover()

    def refusal(self, over: TermOver) -> Exception:
        return over

    async def close(self) -> None:
        """What waits for the disk is tried once more. The copy stays open: a locked member goes on filing sealed entries."""
        with contextlib.suppress(PiccoloError):  # reported; the cluster has it
            await self._catch_up.copy.append(())


def _left_s(give_up_at: float) -> float:
    return max(_LEAST_S, give_up_at - clock.now())

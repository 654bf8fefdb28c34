"""What goes on by itself on a member of a cluster: it follows the log, shares the keyset, and as leader keeps etcd's log short.

Level-triggered: each second, and at once when a hint names a rev that is not here. A hint that is lost costs at most a second,
one that comes twice costs nothing, and one that names what never comes does nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from piccolod import clock
from piccolod.errors import PiccoloError
from services.persistence.etcd_snapshot import EtcdSnapshot
from services.persistence.member_vault import MemberVault
from services.persistence.shared_keyset import SharedKeyset
from services.persistence.vault import Condition

POLL_S: Final = 1.0


class Member:
    """`leads`: whether this node may write now. `at_head` is told when it has come to the head, `judge` when what is to be
    said of its health may have changed."""

    def __init__(
        self,
        vault: MemberVault,
        keyset: SharedKeyset,
        snapshot: Callable[[], EtcdSnapshot | None],
        leads: Callable[[], bool],
        at_head: Callable[[], None],
        judge: Callable[[], None],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._vault = vault
        self._keyset = keyset
        self._snapshot = snapshot
        self._leads = leads
        self._on_head = at_head
        self._judge = judge
        self._log = log
        self._announced = 0
        self._hint = asyncio.Event()
        self._looking = asyncio.Lock()
        self._said = ""

    @property
    def at_head(self) -> bool:
        """Whether this node had all that was committed when it was looked at last. Who is behind does not campaign."""
        catch_up = self._vault.catch_up
        return catch_up is not None and catch_up.at_head

    @property
    def problem(self) -> str:
        """What this node does not believe of what the cluster gives; empty when all is well."""
        catch_up = self._vault.catch_up
        return (catch_up.problem if catch_up is not None else "") or self._keyset.problem

    def on_announced(self, rev: int) -> None:
        self._announced = rev
        self._hint.set()

    async def run(self) -> None:
        await self._vault.opened.wait()
        while True:
            await self.look()
            await self._hints(POLL_S)

    async def look(self) -> None:
        """The whole of it once: head, keyset, snapshots."""
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        if self._vault.condition is Condition.WAITING:
            await self._vault.open(None)
        if self._vault.catch_up is None:
            return
        for part in (self._follow, self._keyset.look, self._keep_snapshots):
            try:
                await part()
            except PiccoloError as error:
                # Of what lies at this node its health speaks; that etcd does not answer is for consensus to say.
                self._log.debug("could not follow the cluster", reason=error.detail)
        if self.problem != self._said:
            self._said = self.problem
            self._judge()

    async def _follow(self) -> None:
        """The leader looks too: a write whose outcome nobody knew may have been made since."""
        catch_up = self._vault.catch_up
        assert catch_up is not None
        behind = not catch_up.at_head
        await catch_up.to_head()
        if behind:
            self._on_head()

    async def _hints(self, for_s: float) -> None:
        """Follows hints for so long, and returns early when consensus does not answer one."""
        until = clock.now() + for_s
        while (left_s := until - clock.now()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._hint.wait()
            except TimeoutError:
                return
            self._hint.clear()
            catch_up = self._vault.catch_up
            if catch_up is not None and not self._leads() and self._announced > catch_up.end.rev:
                try:
                    await catch_up.to_hint(self._announced)
                except PiccoloError:
                    return

    async def _keep_snapshots(self) -> None:
        catch_up = self._vault.catch_up
        ledger = catch_up.ledger if catch_up is not None else None
        if catch_up is None or ledger is None:
            return
        if ledger.wants_snapshot():
            snapshot = ledger.snapshot(clock.wall_ms())
            await catch_up.copy.keep_snapshot(snapshot)
            ledger.snapshot_rev = snapshot.rev
        uploads = self._snapshot()
        if uploads is not None and self._leads():
            await uploads.put_when_due()

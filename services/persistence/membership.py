"""Puts the parts of a member of a cluster together: its vault, its commit point, its keyset, its snapshots, what it follows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

from piccolod.cluster_mode import Mode
from piccolod.errors import LeaderHint, PiccoloError
from piccolod.leadership.gate import Gate
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.module import Module
from services.persistence.catch_up import CatchUp
from services.persistence.cluster_commit import ClusterCommit
from services.persistence.committer import Committer
from services.persistence.etcd_snapshot import EtcdSnapshot
from services.persistence.guesses import Guesses
from services.persistence.ledger import Folded, Ledger
from services.persistence.lock_commands import LockCommands
from services.persistence.member import Member
from services.persistence.member_vault import MemberVault
from services.persistence.shared_keyset import SharedKeyset
from services.persistence.unlocking import UnlockingCommands

# A switchover closes for less than this; a write that waits longer is better told that nobody leads.
PARK_S: Final = 2.0
LOOK_S: Final = 1.5


class Membership:
    def __init__(
        self,
        module: Module,
        mode: Mode,
        gate: Gate,
        leader: Callable[[], LeaderHint | None],
        on_commit: Callable[[Sequence[Folded]], None],
        on_trouble: Callable[[PiccoloError | None], None],
        on_change: Callable[[], None],
        on_head: Callable[[], None],
        judge: Callable[[], None],
        guesses: Guesses,
    ) -> None:
        self._module = module
        self._node = mode.node
        self._gate = gate
        self._leader = leader
        self._on_commit = on_commit
        self._snapshot: EtcdSnapshot | None = None
        paths = module.paths
        self.vault = MemberVault(
            paths.control_db, paths.keyset, mode.cluster, module.call, self._committer, on_change, on_commit, on_trouble,
            self._spawn, module.log, guesses=guesses,
        )  # fmt: skip
        keyset = SharedKeyset(mode.cluster, module.call, gate, leader, lambda: self.vault.passwords, self.vault.key_if_held)
        self.vault.share(keyset)
        self._member = Member(self.vault, keyset, lambda: self._snapshot, self._leads, on_head, judge, module.log)

    @property
    def at_head(self) -> bool:
        return self._member.at_head

    def serve_unlocking(self, locks: LockCommands) -> None:
        UnlockingCommands(self._module, self.vault, locks.mark, locks.unlock_with, locks.status).serve(self._module)

    async def run(self) -> None:
        await self._member.run()

    async def look(self) -> None:
        """At once, and for at most LOOK_S: who unlocks waits for no etcd that does not answer."""
        await asyncio.wait([self._spawn(self._member.look())], timeout=LOOK_S)

    async def recover(self) -> None:
        """What the disk refused is tried again, also while the store is locked."""
        if self.vault.catch_up is not None:
            await self.vault.catch_up.copy.recover()

    def on_announced(self, rev: int) -> None:
        self._member.on_announced(rev)

    def concern(self) -> str:
        """What health has to name; empty when there is nothing. What was set aside is named until somebody removed it."""
        if self._member.problem:
            return self._member.problem
        if self.vault.aside and Path(self.vault.aside).exists():
            return f"the local copy of the log was damaged and taken from the cluster anew; the old one is {self.vault.aside}"
        return ""

    def _leads(self) -> bool:
        return self.vault.store is not None and self._gate.holds(RESOURCE_KERNEL)

    def _committer(self, ledger: Ledger, catch_up: CatchUp) -> Committer:
        module = self._module
        snapshot = EtcdSnapshot(catch_up, module.call, self._gate, module.log)
        point = ClusterCommit(
            self._node, ledger, catch_up, module.call, self._gate, self._on_commit, snapshot.say_full, module.log
        )
        self._snapshot = snapshot
        return Committer(ledger, point, self._gate, self._spawn, module.log, leader=self._other_leader, park_s=PARK_S)

    def _other_leader(self) -> LeaderHint | None:
        """A gate that is open is a better witness than an event that was heard."""
        return None if self._gate.holds(RESOURCE_KERNEL) else self._leader()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._module.spawn(work, name="member")

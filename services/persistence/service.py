"""persistence: the control store, its keys and its lock. The last gate: what is refused here is refused for certain.

A node alone commits on its own disk. A member of a cluster (`cluster_mode`) commits in the cluster's log and follows it.
Which of the two this is, is read once, at the start; a node alone imports nothing of the other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from piccolod import clock, cluster_mode
from piccolod.errors import Busy, Conflict, LeaderHint, NoLeader, NotLeader, PiccoloError
from piccolod.leadership.gate import Gate
from piccolod.leadership.page import PageReader
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.roles import Reason, Role
from piccolod.module import Module
from piccolod.protocol.base import Level, Request
from piccolod.protocol.consensus import Campaign, Closing, Withdraw
from piccolod.protocol.events import ControlRevChanged, ControlStoreCommit, LeadershipRoleChanged, LockStateChanged
from piccolod.protocol.persistence import StoreReport
from services.persistence import cluster_ca
from services.persistence.committer import Committer
from services.persistence.disk import WELL, refused
from services.persistence.documents import DocumentCommands
from services.persistence.guesses import Guesses
from services.persistence.joining import JoiningCommands
from services.persistence.kernel_term import Step, steps
from services.persistence.ledger import Folded, Write
from services.persistence.local_commit import LocalCommit
from services.persistence.lock_commands import DEPOSIT, LockCommands
from services.persistence.lock_mark import LockMark
from services.persistence.log_commands import LogCommands
from services.persistence.state import ABSENT, put
from services.persistence.store import Store
from services.persistence.vault import Condition, Vault

if TYPE_CHECKING:
    from services.persistence.membership import Membership

CHECK_S: Final = 300.0
UPKEEP_S: Final = 1.0
CALL_S: Final = 2.0
# How often an unlock asks for the lead before it answers all the same: consensus may just be restarting.
LEAD_PAUSES_S: Final = (0.05, 0.1, 0.2, 0.4, 0.8)


class Service:
    def __init__(self, module: Module) -> None:
        self._module = module
        paths = module.paths
        self._page = PageReader(paths.page)
        self._gate = Gate(self._page)
        self._leader: LeaderHint | None = None  # who leads instead of this node, as far as is known
        self._announced = 0
        self._disk = WELL
        self._ending = Reason.RELEASED  # why the term that was closed last ends; a former life did not leave its reason
        self._stopping = False
        self._repairs = 0
        self._nudge = asyncio.Event()
        self._aligning = asyncio.Lock()
        self._said: LockStateChanged | None = None
        guesses = Guesses(paths.guesses / "counts.json")
        mode = cluster_mode.load(paths.cluster)
        self._cluster = "" if mode is None else mode.cluster  # whose log this process commits in
        self._membership: Membership | None = None  # of a node alone
        if mode is None:
            self._vault = Vault(paths.control_db, paths.keyset, self._committer, self._changed, module.log, guesses=guesses)
        else:
            from services.persistence.membership import Membership

            self._membership = Membership(
                module, mode, self._gate, lambda: self._leader, self._on_commit, self._on_trouble, self._changed,
                self._nudge.set, self._judge_health, guesses,
            )  # fmt: skip
            self._vault = self._membership.vault
        self._documents = DocumentCommands(self._vault, module.log)
        self._locks = LockCommands(
            module,
            self._vault,
            self._after_unlock,
            self._align,
            lambda: self._leader,
            LockMark(paths.lock_mark),
            shared=mode is not None,
        )
        self._log_commands = LogCommands(
            module, self._vault, lambda: self._announced, self._repair, self._judge_health, alone=mode is None
        )

    async def start(self) -> None:
        module = self._module
        module.paths.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # then wrong guesses are counted until the next restart
            module.paths.guesses.mkdir(mode=0o700, exist_ok=True)
        self._locks.serve(module)
        if self._membership is not None:
            self._membership.serve_unlocking(self._locks)
        self._documents.serve(module)
        JoiningCommands(self._vault, module).serve(module)
        self._log_commands.serve(module)
        module.on(ControlRevChanged, self._on_announced)
        module.on(LeadershipRoleChanged, self._on_role, RESOURCE_KERNEL)
        module.on_resync(self._nudge.set)
        module.spawn(self._open(), name="open")
        module.spawn(self._upkeep(), name="upkeep")
        module.spawn(self._check_all(), name="check")
        if self._membership is not None:
            module.spawn(self._membership.run(), name="follow")

    async def stop(self) -> None:
        """The term lives on: the next life of this module goes on in it."""
        self._stopping = True
        await self._vault.close()

    async def _open(self) -> None:
        await self._vault.open(self._module.deposited(DEPOSIT))
        if self._vault.condition is Condition.UNLOCKED:
            self._locks.opened_by_deposit()
            self._announce_rev()

    async def _after_unlock(self) -> None:
        """Leaves the key with the supervisor, takes the lead, and says so. A member leads when nobody else does."""
        await self._locks.leave_key()
        self._announce_rev()
        if self._membership is not None:
            await self._membership.look()
        for pause_s in LEAD_PAUSES_S:
            if await self._align():
                await self._ensure_ca()
                return
            await asyncio.sleep(pause_s)
        self._module.log.warning("does not lead the kernel yet; it is tried again each second")

    async def _repair(self) -> StoreReport:
        self._repairs += 1
        try:
            report = await self._vault.repair()
        finally:
            self._repairs -= 1
        self._judge_health()
        if self._vault.store is not None:
            await self._after_unlock()
        return report

    # --- what goes on by itself

    async def _upkeep(self) -> None:
        """Level-triggered, each second or when something happens: leads while unlocked, and tries what failed again."""
        await self._vault.opened.wait()
        while True:
            await self._align()
            await self._ensure_ca()
            if self._vault.commits is not None:
                await self._vault.commits.recover()
            elif self._vault.condition is Condition.UNAVAILABLE:
                self._disk_refused(self._vault.reason)
                await self._open()
            if self._membership is not None:
                await self._membership.recover()
            await self._locks.recover()
            self._nudge.clear()
            try:
                async with asyncio.timeout(UPKEEP_S):
                    await self._nudge.wait()
            except TimeoutError:
                continue

    async def _align(self) -> bool:
        """Makes the term of `kernel` follow: led while the store takes writes, given up while not. False when it could not."""
        async with self._aligning:
            if self._stopping or (self._repairs and not self._disk.persists):
                return False  # the store is let go of for a moment, and not given up
            unlocked = self._vault.store is not None
            if not unlocked and self._vault.condition is Condition.UNAVAILABLE and not self._disk.persists:
                return True  # it may be back in a moment, and the very term with it
            able = unlocked and not self._disk.persists
            if not able:
                self._ending = Reason.UNHEALTHY if self._disk.persists else Reason.LOCKED
            try:
                return await self._go(able)
            except (NotLeader, NoLeader, Busy) as error:
                self._module.log.debug("follows", reason=error.detail)
                return self._membership is not None
            except PiccoloError as error:
                self._module.log.debug("could not align the term of the kernel", reason=error.detail)
                return False

    async def _go(self, able: bool) -> bool:
        """The steps to where the term has to be. False: not yet, for who leads has all that was committed."""
        page = self._page.read()
        held = page.terms.get(RESOURCE_KERNEL) if page else None
        for step in steps(able=able, held=held, holds=self._gate.holds(RESOURCE_KERNEL)):
            if step is Step.CAMPAIGN and self._membership is not None and not self._membership.at_head:
                return False
            # Closed: nothing writes any more, for each write looks at the gate once more before its commit.
            if step is Step.CAMPAIGN:
                await self._ask(Campaign(resource=RESOURCE_KERNEL, cluster=self._cluster))
            elif held is not None and step is Step.CLOSE:
                await self._ask(Closing(resource=RESOURCE_KERNEL, token=held.token))
            elif held is not None:
                await self._ask(Withdraw(resource=RESOURCE_KERNEL, token=held.token, reason=self._ending))
        return True

    async def _ensure_ca(self) -> None:
        """Makes the cluster's certificate authority where there is none: at the setup, and for a store of before."""
        store, commits = self._vault.store, self._vault.commits
        if store is None or commits is None or self._vault.damage or not self._gate.holds(RESOURCE_KERNEL):
            return
        if store.state.get(cluster_ca.COLLECTION, cluster_ca.ID) is not None:
            return
        made = cluster_ca.create(store.meta.cluster)
        op = put(cluster_ca.COLLECTION, cluster_ca.ID, cluster_ca.document(made))
        absent = {(cluster_ca.COLLECTION, cluster_ca.ID): ABSENT}
        try:
            await commits.commit(Write([op], absent, self._module.name, "", clock.wall_ms()))
        except Conflict:
            return  # two of us at once: the setup and the upkeep
        except PiccoloError as error:
            self._module.log.warning("could not make the cluster's certificate authority yet", reason=error.detail)
        else:
            self._module.log.info("made the cluster's certificate authority", fingerprint=made.fingerprint)

    async def _ask(self, request: Request[Any]) -> None:
        await self._module.call(request, timeout_s=CALL_S)

    async def _check_all(self) -> None:
        """The whole log and the keyset, with every seal that the key opens: at the start and then every CHECK_S."""
        await self._vault.opened.wait()
        while True:
            if self._vault.condition in (Condition.UNLOCKED, Condition.LOCKED):
                try:
                    report = await self._vault.check()
                    if not report.ok:
                        self._module.log.error("found damage in the control store", problem=report.problem)
                        await self._vault.heal()
                except PiccoloError as error:
                    self._module.log.warning("could not check the control store", reason=error.detail)
                self._judge_health()
            await asyncio.sleep(CHECK_S)

    # --- what others hear

    def _committer(self, store: Store) -> Committer:
        module = self._module
        own_gate = Gate(PageReader(module.paths.page))
        point = LocalCommit(store, own_gate, self._on_commit, self._on_trouble, module.log)
        return Committer(store, point, self._gate, lambda work: module.spawn(work, name="flush"), module.log)

    def _on_commit(self, folded: Sequence[Folded]) -> None:
        collections = tuple(sorted({name for one in folded for name in one.collections}))
        self._announce_rev(collections)

    def _announce_rev(self, collections: tuple[str, ...] = ()) -> None:
        store = self._vault.store
        if store is not None:
            rev = store.state.rev
            self._module.publish(ControlStoreCommit(rev=rev, collections=collections))
            self._module.report_verified(rev, collections, self._gate.holds(RESOURCE_KERNEL))

    def _on_announced(self, event: ControlRevChanged) -> None:
        """A hint and nothing more: on a node alone the store itself is the source."""
        self._announced = event.rev
        if self._membership is not None:
            self._membership.on_announced(event.rev)

    def _on_role(self, event: LeadershipRoleChanged) -> None:
        other = event.role == Role.FOLLOWER and event.node not in ("", self._module.config.node.name)
        self._leader = LeaderHint(event.node, event.address, event.url, event.epoch) if other else None
        self._nudge.set()

    def _on_trouble(self, error: PiccoloError | None) -> None:
        if error is None:
            self._disk_is_well()
        else:
            if not self._disk.failures:
                self._module.log.error("a write of the control store failed", code=error.code, reason=error.detail)
            self._disk_refused(error.detail)

    def _disk_refused(self, reason: str) -> None:
        gave_up = self._disk.persists
        self._disk = refused(self._disk, reason, clock.now())
        if self._disk.persists and not gave_up:
            self._module.log.error("gives the kernel away: the disk takes no writes", reason=reason)
            self._nudge.set()
        self._judge_health()

    def _disk_is_well(self) -> None:
        if self._disk.failures:
            self._module.log.info("the control store takes writes again", failures=self._disk.failures)
            self._disk = WELL
            self._nudge.set()
            self._judge_health()

    def _changed(self) -> None:
        vault = self._vault
        store = vault.store
        if vault.condition is not Condition.UNAVAILABLE:
            self._disk_is_well()  # the store was just read, or nobody writes it
        self._judge_health()
        if vault.condition is Condition.UNAVAILABLE:
            return
        event = LockStateChanged(
            locked=store is None,
            initialized=vault.condition is not Condition.UNINITIALIZED,
            rev=store.state.rev if store else vault.locked_rev,
            reason=vault.reason,
        )
        if event != self._said:
            self._said = event
            self._module.publish(event)
        self._nudge.set()

    def _judge_health(self) -> None:
        """Locked and not set up are conditions, not faults: readiness says them with their reason."""
        vault = self._vault
        given_away = "; this node does not lead the kernel until the disk takes writes" if self._disk.persists else ""
        if vault.condition in (Condition.CORRUPT, Condition.UNAVAILABLE) or vault.damage or vault.keyset_damage:
            self._module.health(Level.ERROR, (vault.reason or vault.damage or vault.keyset_damage) + given_away)
        elif self._disk.failures:
            self._module.health(Level.ERROR, self._disk.reason + given_away)
        elif self._membership is not None and (concern := self._membership.concern()):
            self._module.health(Level.WARN, concern)
        else:
            self._module.health(Level.OK, vault.reason)

"""The life of the control store on this node: set up, locked, unlocked, damaged, repaired.

    uninitialized  no password yet        locked       a keyset and a log that hang together as far as digests show
    unlocked       folded and verified    corrupt      damaged: nothing is written and nothing deleted, `repair` goes on
    unavailable    the disk does not answer; tried again by itself
    waiting        a member that has nothing of its own yet, until the cluster gives it

One change of condition at a time. Who may ask for one, and who is told of it, is the service's business.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec

from piccolod import clock
from piccolod.errors import Conflict, Exists, Locked, PiccoloError, StoreCorrupt, StoreUnavailable
from piccolod.protocol.log import SealedEntry
from piccolod.protocol.persistence import StoreReport
from piccolod.supervisor import settle
from services.persistence import keyset as keysets
from services.persistence.chain import Chain
from services.persistence.committer import Committer
from services.persistence.guesses import Guesses
from services.persistence.head import HeadFile
from services.persistence.keyset import Kdf
from services.persistence.ledger import Ledger
from services.persistence.log import REPAIR_HINT, LogReader
from services.persistence.passwords import Passwords
from services.persistence.repair import Salvage, finish, rebuild, salvage
from services.persistence.secret import KEY_BYTES, SecretKey
from services.persistence.store import Store
from services.persistence.verify import Survey, head_path, survey

# After it nobody runs the code of Argon2 and of a first setup's certificate, 6 MiB of pages, any more (measured).
_CALM_S: Final = 1.0


class Condition(StrEnum):
    OPENING = "opening"
    UNINITIALIZED = "uninitialized"
    LOCKED = "locked"
    UNLOCKED = "unlocked"
    CORRUPT = "corrupt"
    UNAVAILABLE = "unavailable"
    WAITING = "waiting"


class Vault:
    """`reason` says in one sentence why the store is not usable; `damage` what a check found under a running store."""

    def __init__(
        self,
        db: Path,
        keyset: Path,
        committer: Callable[[Store], Committer],
        on_change: Callable[[], None],
        log: Any,
        kdf: Kdf | None = None,
        guesses: Guesses | None = None,
    ) -> None:
        """`kdf`: the parameters of Argon2id for a new keyset; None measures this host."""
        self._db = db
        self._keyset = keyset
        self._committer = committer
        self._on_change = on_change
        self._log = log
        self._kdf = kdf
        self._changing = asyncio.Lock()
        self._key: SecretKey | None = None
        self.condition = Condition.OPENING
        self.reason = "the store is being read"
        self.damage = ""
        self.keyset_damage = ""
        self.opened = asyncio.Event()
        self.passwords = Passwords(keyset, None, guesses)
        self.cluster = ""
        self.locked_rev = 0
        self.store: Ledger | None = None
        self.commits: Committer | None = None

    # --- what callers stand on

    def unlocked(self) -> tuple[Ledger, Committer]:
        """The store and its writer. Raises Locked, StoreCorrupt, StoreUnavailable with the reason."""
        if self.store is not None and self.commits is not None:
            return self.store, self.commits
        raise self._refusal()

    def _refusal(self) -> PiccoloError:
        match self.condition:
            case Condition.CORRUPT:
                return StoreCorrupt(self.reason, hint=REPAIR_HINT)
            case Condition.UNAVAILABLE | Condition.OPENING | Condition.WAITING:
                return StoreUnavailable(self.reason, hint="it is tried again by itself")
            case Condition.UNINITIALIZED:
                return Locked(self.reason, hint="set a password: `piccoloctl setup`")
            case _:
                return Locked(self.reason, hint="unlock it: `piccoloctl unlock`")

    def locked_end(self) -> tuple[int, bytes]:
        """Rev and, where it is known, digest of the last entry that is here, as far as can be told without the key."""
        return self.locked_rev, b""

    def end(self) -> Chain:
        """The verified end of the log. Raises Locked, StoreCorrupt, StoreUnavailable."""
        return self.unlocked()[0].chain

    async def file_all(self) -> None:
        """All that is visible is in the file when this returns. Here it is that from the start on."""

    async def take(self, entries: Sequence[SealedEntry], keyset: bytes) -> None:
        """What was committed and has not come here yet. Raises Conflict: of a node alone nothing was committed elsewhere."""
        raise Conflict("this node is alone, and its log is all there is")

    @property
    def busy(self) -> bool:
        """Whether a password is being checked or the condition is being changed."""
        return self.passwords.waiting > 0 or self._changing.locked()

    def key_if_held(self) -> SecretKey | None:
        return self._key

    # --- changes of condition

    async def open(self, deposited: bytes | None) -> None:
        """Finds out what is there, and unlocks at once with the key that a former life left."""
        async with self._changing:
            key = _key_of(deposited) or self._key
            try:
                try:
                    await self._look(key)
                except StoreCorrupt:
                    # Damage shows without the key too. If nothing does, the key was that of another store.
                    await self._look(None)
            except StoreCorrupt as error:
                self._key = key
                self._become(Condition.CORRUPT, error.detail)
            except PiccoloError as error:
                self._key = key
                self._become(Condition.UNAVAILABLE, error.detail)
            finally:
                self.opened.set()

    async def _look(self, key: SecretKey | None) -> None:
        await asyncio.to_thread(finish, self._db)
        keyset = await asyncio.to_thread(keysets.load, self._keyset)
        self.passwords.keyset = keyset
        if keyset is None:
            self.cluster = await asyncio.to_thread(_cluster_of_empty, self._db, self._keyset)
            self._become(Condition.UNINITIALIZED, "this node has no password yet")
            return
        self.cluster = keyset.cluster
        if key is not None:
            await self._unlock(key)
            return
        found = await self._survey(None)
        self.locked_rev = found.good_rev
        if not found.ok:
            raise StoreCorrupt(found.problem, hint=REPAIR_HINT)
        self._become(Condition.LOCKED, "the control store is locked")

    async def set_up(self, password: str) -> None:
        """The first password; the store is unlocked afterwards. Raises Exists, Invalid, StoreFull, StoreUnavailable.

        The keyset is the point of no return: a death before it leaves an empty log, which the next setup takes over.
        """
        async with self._changing:
            if self.passwords.keyset is None and self.condition is not Condition.UNINITIALIZED:
                raise self._refusal()
            if self.condition is not Condition.UNINITIALIZED:
                raise Exists("this node has a password already", hint="`piccoloctl unlock`, or `piccoloctl keys password`")
            cluster = self.cluster or uuid.uuid4().hex
            keyset, sdek = await self.passwords.set_up(cluster, password, self._kdf)
            if not self.cluster:
                await asyncio.to_thread(Store.create, self._db, cluster)
                self.cluster = cluster
            try:
                await self.passwords.keep(keyset)
            finally:
                if self.passwords.keyset is not None:
                    self._become(Condition.LOCKED, "the control store is locked")
            await self._unlock(sdek)

    async def unlock(self, sdek: SecretKey) -> None:
        """Folds and verifies the log. Raises StoreCorrupt, StoreUnavailable; nothing when it is unlocked already."""
        async with self._changing:
            if self.store is not None:
                return
            try:
                await self._unlock(sdek)
            except StoreCorrupt as error:
                # Kept for `repair`, which with the key proves more than digests.
                self._key = sdek
                self._become(Condition.CORRUPT, error.detail)
                raise

    async def keyset_made(self) -> None:
        """Raises Locked before the setup, StoreCorrupt when the keyset is damaged, StoreUnavailable while it has not come."""
        await self.opened.wait()
        if self.passwords.keyset is None:
            self.unlocked()

    async def _unlock(self, sdek: SecretKey) -> None:
        self.store, self.commits = await self._open_store(sdek)
        self._key = sdek
        self.damage = ""
        self._become(Condition.UNLOCKED, "")
        asyncio.get_running_loop().call_later(_CALM_S, settle.unmap_code)

    async def _open_store(self, sdek: SecretKey) -> tuple[Ledger, Committer]:
        store = await asyncio.to_thread(Store, self._db, self.cluster, sdek)
        return store, self._committer(store)

    async def _survey(self, key: SecretKey | None) -> Survey:
        return await asyncio.to_thread(survey, self._db, self.cluster, key)

    async def lock(self) -> None:
        """Ends the writes under way, then forgets. Idempotent."""
        async with self._changing:
            await self._let_go(Locked("the control store is locked", hint="unlock it: `piccoloctl unlock`"))
            self._key = None
            if self.condition is Condition.UNLOCKED:
                self._become(Condition.LOCKED, "the control store is locked")

    async def close(self) -> None:
        """For the end of the process: what is under way is ended, the condition stays."""
        async with self._changing:
            await self._let_go(StoreUnavailable("persistence is stopping", hint="try again in a moment"))
            self.condition, self.reason = Condition.OPENING, "persistence is stopping"
            self.passwords.close()

    async def _let_go(self, reason: PiccoloError) -> None:
        commits, store = self.commits, self.store
        self.store = self.commits = None
        if store is not None and commits is not None:
            await commits.close(reason)
            self.locked_rev = store.state.rev

    # --- check and repair

    async def check(self) -> StoreReport:
        """Looks at the whole log, with the key when it is held. What it finds is remembered until it is gone."""
        if self.passwords.keyset is None:
            raise self._refusal()
        found = await self._survey(self._key)
        self.keyset_damage = await self._keyset_damage()
        if self.store is not None:
            self.damage = found.problem
        elif self.condition is Condition.LOCKED and not found.ok:
            self._become(Condition.CORRUPT, found.problem)
        if found.ok and self.keyset_damage:
            return msgspec.structs.replace(report_of(found), ok=False, file=str(self._keyset), problem=self.keyset_damage)
        return report_of(found)

    async def heal(self) -> None:
        """After a check that found damage: what can be made good without losing anything."""

    async def _keyset_damage(self) -> str:
        """What is wrong with the keyset on the disk; the one in memory is whole."""
        try:
            on_disk = await asyncio.to_thread(keysets.load, self._keyset)
        except StoreCorrupt as error:
            return error.detail
        except PiccoloError:
            return ""
        return "" if on_disk is not None else f"{self._keyset} is missing"

    async def repair(self) -> StoreReport:
        """Sets the damaged file aside and keeps what proves itself. Does nothing to a log that is whole."""
        async with self._changing:
            if self.passwords.keyset is None:
                raise self._refusal()
            if self.keyset_damage or await self._keyset_damage():
                await asyncio.to_thread(keysets.replace_damaged, self._keyset, self.passwords.keyset)
                self.keyset_damage = ""
            before = await self._survey(self._key)
            if before.ok:
                if self.condition is Condition.CORRUPT:
                    await self._after_repair()
                return report_of(before)
            saved = await self._salvage()
            aside = await asyncio.to_thread(rebuild, self._db, saved)
            self.damage = ""
            self._log.warning("repaired the control store", problem=before.problem, kept_rev=saved.rev, lost_revs=saved.lost)
            await self._after_repair()
            after = await self._survey(self._key)
            return report_of(after, set_aside=str(aside or ""), lost=saved.lost)

    async def _salvage(self) -> Salvage:
        """What can be kept. The state of a running store is verified, so with its snapshot nothing of it is lost."""
        also = [] if self.store is None else [self.store.snapshot(clock.wall_ms())]
        if self.store is not None:
            await self._let_go(StoreUnavailable("the control store is being repaired", hint="try again in a moment"))
            self._become(Condition.CORRUPT, self.damage or "the control store is being repaired")
        return await asyncio.to_thread(salvage, self._db, self.cluster, self._key, also)

    async def _after_repair(self) -> None:
        try:
            await self._look(self._key)
        except StoreCorrupt as error:
            self._become(Condition.CORRUPT, error.detail)
            raise

    def _become(self, condition: Condition, reason: str) -> None:
        if (condition, reason) != (self.condition, self.reason):
            self._log.info("changed the condition of the store", condition=condition, reason=reason)
        self.condition, self.reason = condition, reason
        self._on_change()


def _key_of(deposited: bytes | None) -> SecretKey | None:
    return SecretKey(deposited) if deposited is not None and len(deposited) == KEY_BYTES else None


def _cluster_of_empty(db: Path, keyset: Path) -> str:
    """Where there is no keyset: "" for nothing at all, the cluster of an empty log. Raises StoreCorrupt for more than that."""
    mark = HeadFile(head_path(db)).read()
    lost = StoreCorrupt(
        f"{keyset} is missing, and {db} is a store that was in use", hint="put the keyset back from a backup, or move both away"
    )
    if mark is not None and mark.rev > 0:
        raise lost
    if not db.exists():
        return ""
    reader = LogReader(db)
    try:
        if next(reader.entries(limit=1), None) is not None or next(reader.snapshots(), None) is not None:
            raise lost
        return reader.meta().cluster
    finally:
        reader.close()


def report_of(found: Survey, set_aside: str = "", lost: int = 0) -> StoreReport:
    return StoreReport(
        ok=found.ok,
        file=found.file,
        entries=found.entries,
        first_rev=found.first_rev,
        good_rev=found.good_rev,
        head_rev=found.head_rev,
        problem=found.problem,
        set_aside=set_aside,
        lost_revs=lost,
    )

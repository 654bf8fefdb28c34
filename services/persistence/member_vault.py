"""The control store of a member of a cluster: what is damaged or missing here is taken from the cluster again.

The local file is a copy. A damaged one is set aside as `control.db.corrupt-<time>`, what of it still proves itself is kept,
and the rest comes from etcd; of a running store nothing is missing at all, since its state in memory is verified. A node that
has no keyset of its own waits for the cluster's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from piccolod import clock
from piccolod.errors import PiccoloError, StoreCorrupt, StoreUnavailable
from piccolod.protocol.log import SealedEntry
from piccolod.protocol.persistence import StoreReport
from services.persistence import keyset as keysets
from services.persistence.catch_up import Ask, CatchUp, as_sealed
from services.persistence.chain import Chain, check_snapshot
from services.persistence.committer import Committer
from services.persistence.entry import CannotOpen, open_bytes, open_entry
from services.persistence.guesses import Guesses
from services.persistence.keyset import Kdf, Keyset
from services.persistence.ledger import Folded, Ledger
from services.persistence.local_copy import LocalCopy
from services.persistence.log import FORMAT, LogReader, Meta
from services.persistence.passwords import Passwords
from services.persistence.repair import Salvage, finish, kept_of_copy, rebuild
from services.persistence.secret import SecretKey
from services.persistence.shared_keyset import SharedKeyset
from services.persistence.store import Store
from services.persistence.vault import Condition, Vault, report_of
from services.persistence.verify import Survey, end_of, load, survey


class MemberVault(Vault):
    """`aside`: the damaged file that was replaced last, empty when there was none in this life."""

    def __init__(
        self,
        db: Path,
        keyset: Path,
        cluster: str,
        ask: Ask,
        committer: Callable[[Ledger, CatchUp], Committer],
        on_change: Callable[[], None],
        on_commit: Callable[[Sequence[Folded]], None],
        on_trouble: Callable[[PiccoloError | None], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        log: Any,
        kdf: Kdf | None = None,
        guesses: Guesses | None = None,
    ) -> None:
        super().__init__(db, keyset, _no_local_commits, on_change, log, kdf, guesses)
        self.cluster = cluster
        self._ask = ask
        self._member_committer = committer
        self._on_commit = on_commit
        self._on_trouble = on_trouble
        self._spawn = spawn
        self._guesses = guesses
        self.catch_up: CatchUp | None = None
        self.aside = ""

    def share(self, shared: SharedKeyset) -> None:
        """Before `open`: where the keyset is agreed on."""
        self.passwords.close()
        self.passwords = Passwords(self._keyset, None, self._guesses, shared, self.fits)
        self._shared = shared

    def locked_end(self) -> tuple[int, bytes]:
        if self.catch_up is None:
            return self.locked_rev, b""
        return self.catch_up.end.rev, self.catch_up.end.digest

    def end(self) -> Chain:
        """While it is locked as far as digests show, which `end_of` and each append have looked at."""
        if self.condition is Condition.LOCKED and self.catch_up is not None:
            return self.catch_up.end
        return super().end()

    async def file_all(self) -> None:
        """Raises StoreFull, StoreUnavailable, StoreCorrupt."""
        if self.catch_up is not None:
            async with self.catch_up.lock:
                await self.catch_up.copy.append(())

    async def take(self, entries: Sequence[SealedEntry], keyset: bytes) -> None:
        """Those that follow and prove themselves. Raises Locked, StoreFull, StoreUnavailable, StoreCorrupt."""
        self.unlocked()
        assert self.catch_up is not None
        await self.catch_up.take([as_sealed(entry) for entry in entries])
        found = keysets.decode(keyset) if keyset else None
        if found is not None and found.cluster == self.cluster:
            await self.passwords.consider(found, self._key)

    # --- changes of condition

    async def _look(self, key: SecretKey | None) -> None:
        await asyncio.to_thread(finish, self._db)
        if self.passwords.keyset is None:
            self.passwords.keyset = await self._own_keyset()
            await self.passwords.load_offer()
        if self.passwords.keyset is None:
            self._become(Condition.WAITING, self._shared.problem or "the keyset of the cluster has not come yet")
            return
        if key is not None and not await asyncio.to_thread(self._is_ours, key):
            self._log.warning("does not take the key of another store", cluster=self.cluster)
            key = None
        if self.catch_up is None:
            self.catch_up = await self._opened_copy(key)
        self.locked_rev = self.catch_up.end.rev
        if key is not None:
            await self._unlock(key)
        else:
            self._become(Condition.LOCKED, "the control store is locked")

    def _is_ours(self, key: SecretKey) -> bool:
        """In a thread. The supervisor may still keep the key of the store that this node had alone before it joined."""
        known = [each for each in (self.passwords.keyset, self.passwords.offered) if each is not None and each.proof]
        return any(keysets.is_genuine(each, key) for each in known) if known else self.fits(key)

    async def _own_keyset(self) -> Keyset | None:
        """This node's; the cluster's where it has none or a damaged one. None while neither is there."""
        damaged = False
        try:
            mine = await asyncio.to_thread(keysets.load, self._keyset)
            if mine is not None and mine.cluster == self.cluster:
                return mine
            if mine is not None:
                self._shared.problem = f"{self._keyset} is of another cluster and has to be moved away first"
                return None
        except StoreCorrupt as error:
            damaged = True
            self._log.error("the keyset is damaged; the cluster's takes its place", reason=error.detail)
        try:
            found = await self._shared.fetch()
        except PiccoloError as error:
            self._shared.problem = f"the keyset of the cluster has not come yet: {error.detail}"
            return None
        if found is not None:
            put_down = keysets.replace_damaged if damaged else keysets.save
            await asyncio.to_thread(put_down, self._keyset, found)
            self._shared.problem = ""
            self._log.info("took the keyset of the cluster", version=found.version)
        return found

    async def _opened_copy(self, key: SecretKey | None) -> CatchUp:
        if not self._db.exists():
            await asyncio.to_thread(Store.create, self._db, self.cluster)
        return CatchUp(self.cluster, await self._copy(key), self._ask, self._on_commit, self._log)

    async def _copy(self, key: SecretKey | None) -> LocalCopy:
        try:
            chain, meta = await asyncio.to_thread(end_of, self._db, self.cluster)
        except StoreCorrupt as error:
            await self._replace(await self._kept(key), error.detail)
            chain, meta = await asyncio.to_thread(end_of, self._db, self.cluster)
        return LocalCopy(self._db, chain, meta, self._spawn, self._on_trouble)

    async def _open_store(self, sdek: SecretKey) -> tuple[Ledger, Committer]:
        catch_up = self.catch_up
        assert catch_up is not None
        async with catch_up.lock:
            try:
                await catch_up.copy.append(())
                loaded = await asyncio.to_thread(load, self._db, self.cluster, sdek, whole=False)
            except StoreCorrupt as error:
                # While it was locked it filed what it could not open; or the file is damaged. Or the key is a wrong one.
                saved = await self._kept(sdek)
                await catch_up.copy.close()
                await self._replace(saved, error.detail)
                catch_up.copy = await self._copy(sdek)
                loaded = await asyncio.to_thread(load, self._db, self.cluster, sdek, whole=False)
            ledger = Ledger(self._db, sdek, loaded)
            committer = self._member_committer(ledger, catch_up)
            catch_up.ledger = ledger
            return ledger, committer

    async def _let_go(self, reason: PiccoloError) -> None:
        await super()._let_go(reason)
        if self.catch_up is not None:
            async with self.catch_up.lock:
                self.catch_up.ledger = None

    async def close(self) -> None:
        await super().close()
        if self.catch_up is not None:
            await self.catch_up.copy.close()

    # --- damage

    async def _survey(self, key: SecretKey | None) -> Survey:
        return await asyncio.to_thread(survey, self._db, self.cluster, key, whole=False)

    async def repair(self) -> StoreReport:
        """What happens by itself; and a whole copy that is not of the cluster's log is begun anew. Deletes nothing.

        As lost count the revs behind the cluster's last one, which are only in the file that was set aside.
        """
        await self.heal()
        lost = 0
        if self.catch_up is not None and self.catch_up.forked:
            lost, end = self.catch_up.beyond, self.catch_up.end.rev
            if lost:
                self._log.warning("gives up revs that the cluster does not have", first_rev=end - lost + 1, last_rev=end)
            await self._begin_anew(self.catch_up)
        found = await self._survey(self._key)
        return report_of(found, set_aside=self.aside, lost=lost)

    async def heal(self) -> None:
        """Sets a damaged copy or keyset aside and puts a whole one there. Raises StoreFull, StoreUnavailable, StoreCorrupt."""
        async with self._changing:
            keyset, catch_up = self.passwords.keyset, self.catch_up
            if keyset is None or catch_up is None:
                return
            if self.keyset_damage or await self._keyset_damage():
                await asyncio.to_thread(keysets.replace_damaged, self._keyset, keyset)
                self.keyset_damage = ""
            async with catch_up.lock:
                found = await self._survey(self._key)
                if not found.ok:
                    saved = await self._kept(self._key)
                    await catch_up.copy.close()
                    await self._replace(saved, found.problem)
                    catch_up.copy = await self._copy(self._key)
                    await self._file_what_is_known(catch_up)
            self.damage = ""
            if self.condition is Condition.CORRUPT:
                await self._look(self._key)

    async def _begin_anew(self, catch_up: CatchUp) -> None:
        async with self._changing:
            await self._let_go(StoreUnavailable("the control store is being repaired", hint="try again in a moment"))
            await catch_up.copy.close()
            await self._replace(Salvage((), (), Meta(FORMAT, self.cluster), 0, 0), catch_up.problem)
            self.catch_up = None
            await self._look(self._key)

    async def _file_what_is_known(self, catch_up: CatchUp) -> None:
        """The state in memory is verified: its snapshot stands for what the damage took."""
        ledger = catch_up.ledger
        if ledger is not None and catch_up.copy.chain.rev < ledger.chain.rev:
            sealed = ledger.snapshot(clock.wall_ms())
            await catch_up.copy.install(sealed, check_snapshot(sealed, self.cluster))

    async def _kept(self, key: SecretKey | None) -> Salvage:
        return await asyncio.to_thread(kept_of_copy, self._db, self.cluster, key)

    async def _replace(self, saved: Salvage, problem: str) -> None:
        aside = await asyncio.to_thread(rebuild, self._db, saved)
        self.aside = str(aside or "")
        self._log.error("replaced a damaged copy of the log", problem=problem, kept_rev=saved.rev, set_aside=self.aside)

    def fits(self, sdek: SecretKey) -> bool:
        """Whether a key opens what is here of the log. In a thread. Of an empty log nothing can be said."""
        try:
            reader = LogReader(self._db)
        except PiccoloError:
            return True
        try:
            for snapshot in reader.snapshots():
                open_bytes(sdek.cipher, snapshot)
                return True
            for entry in reader.entries(limit=1):
                open_entry(sdek.cipher, entry)
            return True
        except CannotOpen:
            return False
        except PiccoloError:
            return True  # damaged: for the unlock to find
        finally:
            reader.close()


def _no_local_commits(store: Store) -> Committer:
    raise AssertionError("a member commits in the cluster")

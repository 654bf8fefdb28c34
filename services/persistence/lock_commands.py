"""Commands on the lock and the keys: setup, unlock, lock, passwords, recovery words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from piccolod.errors import LeaderHint, NotLeader, PiccoloError
from piccolod.module import Caller, Module
from piccolod.protocol.base import Nothing
from piccolod.protocol.persistence import (
    ChangePassword,
    CryptoStatus,
    GetCryptoStatus,
    Lock,
    NewRecovery,
    RecoveryWords,
    ResetPassword,
    Setup,
    Unlock,
    VerifyPassword,
)
from services.persistence.lock_mark import LockMark
from services.persistence.secret import SecretKey
from services.persistence.vault import Condition, Vault

DEPOSIT: Final = "sdek"
# After a lock this process ends and starts clean, since Python cannot wipe what it held: late enough for the answer to
# leave, early enough that nothing of the key is left when somebody looks.
RESTART_AFTER_LOCK_S: Final = 0.25


class LockCommands:
    """`after_unlock` and `after_lock` make the term of the kernel follow. `leader`: who leads instead of this node."""

    def __init__(
        self,
        module: Module,
        vault: Vault,
        after_unlock: Callable[[], Awaitable[None]],
        after_lock: Callable[[], Awaitable[object]],
        leader: Callable[[], LeaderHint | None],
        mark: LockMark,
        *,
        shared: bool,
    ) -> None:
        """`shared`: the keyset is the cluster's, which the leader alone changes. `mark`: that a lock was on purpose."""
        self._module = module
        self._vault = vault
        self._after_unlock = after_unlock
        self._after_lock = after_lock
        self._leader = leader
        self.mark = mark
        self._shared = shared
        self._deposit_left = module.deposited(DEPOSIT) is not None
        self._has_held = False  # the key, when this node was locked

    def serve(self, module: Module) -> None:
        module.serve(GetCryptoStatus, self._crypto_status)
        module.serve(Setup, self._setup)
        module.serve(Unlock, self._unlock)
        module.serve(Lock, self._lock)
        module.serve(VerifyPassword, self._verify_password)
        module.serve(ChangePassword, self._change_password)
        module.serve(NewRecovery, self._new_recovery)
        module.serve(ResetPassword, self._reset_password)

    async def leave_key(self) -> None:
        """Leaves the key with the supervisor for the next life of this module."""
        key = self._vault.key_if_held()
        if key is None:
            return
        try:
            self._deposit_left = True
            await self._module.deposit(DEPOSIT, key.raw())
        except PiccoloError as error:
            # It works; only a crash of this module would lock the node.
            self._module.log.warning("could not leave the key with the supervisor", reason=error.detail)

    async def _crypto_status(self, request: GetCryptoStatus, caller: Caller) -> CryptoStatus:
        await self._vault.opened.wait()
        return self.status()

    def status(self) -> CryptoStatus:
        vault = self._vault
        keyset = vault.passwords.keyset
        return CryptoStatus(
            initialized=vault.condition is not Condition.UNINITIALIZED,
            locked=vault.store is None,
            has_recovery=keyset is not None and keyset.recovery is not None,
            keyset_version=keyset.version if keyset else 0,
            cluster_id=vault.cluster,
            reason=vault.reason or vault.damage or vault.keyset_damage,
        )

    async def _setup(self, request: Setup, caller: Caller) -> CryptoStatus:
        await self._vault.opened.wait()
        await self._vault.set_up(request.password)
        self.mark.clear()
        await self._after_unlock()
        self._module.log.info("set up the control store", cluster=self._vault.cluster)
        return self.status()

    async def _unlock(self, request: Unlock, caller: Caller) -> CryptoStatus:
        await self._vault.keyset_made()
        key = await self._vault.passwords.by_password(request.password, request.source)
        self.mark.clear()
        await self.unlock_with(key)
        return self.status()

    async def _reset_password(self, request: ResetPassword, caller: Caller) -> CryptoStatus:
        await self._vault.keyset_made()
        passwords = self._vault.passwords
        if self._shared:
            # The words may be all that is left of a cluster that is locked everywhere: they open this node, which leads then.
            if (leader := self._leader()) is not None:
                raise NotLeader(f"{leader.node} leads the control store", hint="reset it there", leader=leader)
            key = await passwords.by_words(request.words, request.source)
            await self.unlock_with(key)
            await passwords.replace(key, request.new)
        else:
            key = await passwords.reset(request.words, request.new, request.source)
        self.mark.clear()
        self._module.log.info("reset the password by the recovery words")
        await self.unlock_with(key)
        return self.status()

    async def unlock_with(self, key: SecretKey) -> None:
        if self._vault.store is None:
            await self._vault.unlock(key)
            await self._after_unlock()

    async def _lock(self, request: Lock, caller: Caller) -> CryptoStatus:
        await self._vault.opened.wait()
        held = self._vault.key_if_held() is not None
        if self._shared and request.stays:
            self.mark.set()  # first: a crash after it must not find a peer that unlocks
        await self._vault.lock()
        self._has_held = self._has_held or held or self._deposit_left  # the last: an unlock that was under way
        await self._after_lock()
        await self._drop_deposit()
        self._start_clean()
        return self.status()

    async def _drop_deposit(self) -> None:
        if self._deposit_left:
            await self._module.drop_deposits()
            self._deposit_left = False

    async def recover(self) -> None:
        """A lock whose key the supervisor could not be told to forget: the next life must not open with it."""
        if self._vault.condition is Condition.LOCKED and self._deposit_left:
            with contextlib.suppress(PiccoloError):  # tried again each second
                await self._drop_deposit()
                self._start_clean()

    def _start_clean(self) -> None:
        """Once nobody keeps the key for the next life: what this one held of it goes with its memory."""
        if self._has_held:
            asyncio.get_running_loop().call_later(RESTART_AFTER_LOCK_S, self._restart_if_locked)

    def opened_by_deposit(self) -> None:
        """A lock that did not get so far that the key was forgotten did not happen."""
        self.mark.clear()

    def _restart_if_locked(self) -> None:
        """Not while somebody is being answered, and not at all when the answer was an unlock."""
        if self._vault.store is not None:
            return
        if self._vault.busy:
            asyncio.get_running_loop().call_later(RESTART_AFTER_LOCK_S, self._restart_if_locked)
        else:
            self._module.stopping.set()

    async def _verify_password(self, request: VerifyPassword, caller: Caller) -> Nothing:
        await self._vault.keyset_made()
        self._vault.unlocked()
        await self._vault.passwords.by_password(request.password, request.source)
        return Nothing()

    async def _change_password(self, request: ChangePassword, caller: Caller) -> CryptoStatus:
        await self._vault.keyset_made()
        await self._vault.passwords.change(request.old, request.new, request.source)
        self._module.log.info("changed the password")
        return self.status()

    async def _new_recovery(self, request: NewRecovery, caller: Caller) -> RecoveryWords:
        await self._vault.keyset_made()
        words = await self._vault.passwords.new_recovery(request.password, request.source)
        self._module.log.info("made new recovery words")
        return RecoveryWords(words=words)

"""Commands of auto-unlock: the ask of this node while it is locked, and the key for another member while it is not.

The giver decides by its own verified store: the setting, the list of nodes, the key that the list has for the name. That the
node is in session, was seen lately and has no twin, consensus looks at, and commits. What crosses the bus to the api is sealed
to the asker, so that no other process here ever holds the key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from piccolod import clock
from piccolod.errors import Conflict, Forbidden, PiccoloError, StoreCorrupt, StoreUnavailable
from piccolod.leadership.page import PageReader
from piccolod.module import Caller, Module
from piccolod.pki import proof
from piccolod.pki.identity import Role
from piccolod.protocol.persistence import CryptoStatus
from piccolod.protocol.unlocking import (
    PURPOSE,
    AskText,
    AskUnlock,
    AutoUnlock,
    GiveKey,
    GrantUnlock,
    SealedKey,
    SignedAsk,
    TakeKey,
    UnlockAsk,
    UnlockSettings,
)
from services.persistence import admission, key_seal
from services.persistence import keyset as keysets
from services.persistence.admission import NODES, NodeRecord
from services.persistence.joining import SETTINGS
from services.persistence.key_seal import Asking
from services.persistence.lock_mark import LockMark
from services.persistence.member_vault import MemberVault
from services.persistence.secret import SecretKey
from services.persistence.state import State
from services.persistence.vault import Condition

_GRANT_S: Final = 12.0
_ON_PURPOSE: Final = "it was locked on purpose: no peer unlocks it"
_BY_PERSON: Final = "`piccoloctl unlock` on it"


class UnlockingCommands:
    """`unlock_with(key)`: as after the right password. `status()`: what is told of the lock."""

    def __init__(
        self,
        module: Module,
        vault: MemberVault,
        mark: LockMark,
        unlock_with: Callable[[SecretKey], Awaitable[None]],
        status: Callable[[], CryptoStatus],
    ) -> None:
        self._module = module
        self._vault = vault
        self._mark = mark
        self._unlock_with = unlock_with
        self._status = status
        self._node = module.config.node.name
        self._page = PageReader(module.paths.page)
        self._asking: Asking | None = None

    def serve(self, module: Module) -> None:
        module.serve(AskUnlock, self._ask)
        module.serve(TakeKey, self._take)
        module.serve(GiveKey, self._give)

    # --- this node is locked

    async def _ask(self, request: AskUnlock, caller: Caller) -> AskText:
        await self._vault.keyset_made()
        self._check_asks()
        page = self._page.read()
        if page is None or not page.sid:
            raise StoreUnavailable("this node has no session in etcd", hint="it is tried again by itself")
        self._asking = Asking(self._vault.cluster, self._node, page.sid, clock.boot_id())
        return AskText(self._asking.text)

    def _check_asks(self) -> None:
        if self._vault.condition is not Condition.LOCKED:
            raise Conflict("this node is not locked")
        if self._mark.is_set:
            raise Conflict(_ON_PURPOSE, hint=_BY_PERSON)

    async def _take(self, request: TakeKey, caller: Caller) -> CryptoStatus:
        asking, self._asking = self._asking, None
        self._check_asks()
        if asking is None:
            raise Conflict("there is no ask that this could answer")
        key = asking.open(request.key)
        await self._check_fits(key, request.key.giver)
        self._check_asks()
        try:
            await self._unlock_with(key)
        except StoreCorrupt:
            self._module.log.error("a key from a member does not open the store", giver=request.key.giver)
            raise
        self._module.log.info("was unlocked by a member", giver=request.key.giver)
        return self._status()

    async def _check_fits(self, key: SecretKey, giver: str) -> None:
        """The keyset's proof is by the very key; the log has to open too. The cluster's newer keyset may be the proven one."""
        passwords = self._vault.passwords
        known = [each for each in (passwords.keyset, passwords.offered) if each is not None]
        proven = any(keysets.is_genuine(each, key) for each in known)
        if not proven or not await asyncio.to_thread(self._vault.fits, key):
            raise Forbidden(f"the key that {giver} gave does not open the keyset and the log of this node")

    # --- another one is

    async def _give(self, request: GiveKey, caller: Caller) -> SealedKey:
        await self._vault.opened.wait()
        signed = request.signed
        ask = key_seal.decode(signed.ask)
        try:
            store, _ = self._vault.unlocked()
            chosen, listed = self._checked(store.state, ask, signed)
            grant = GrantUnlock(
                node=ask.node, sid=ask.sid, boot_id=ask.boot_id, within_s=chosen.auto_unlock_within_s, known_ms=listed.joined_ms
            )  # fmt: skip
            await self._module.call(grant, timeout_s=_GRANT_S)
            # It took a while: what was decided upon must still be so.
            store, _ = self._vault.unlocked()
            self._checked(store.state, ask, signed)
            key = self._vault.key_if_held()
            assert key is not None
            sealed = key_seal.seal(key, signed.ask, self._node)
        except PiccoloError as error:
            self._module.log.warning("did not unlock a node", node=ask.node[:60], sid=ask.sid, reason=error.detail)
            raise
        self._module.log.info("unlocked a node", node=ask.node, sid=ask.sid, boot_id=ask.boot_id)
        return sealed

    def _checked(self, state: State, ask: UnlockAsk, signed: SignedAsk) -> tuple[UnlockSettings, NodeRecord]:
        signer = proof.signer(signed.key, PURPOSE, signed.ask, signed.signature)
        listed = admission.record(NodeRecord, state.get(NODES, ask.node), f"{NODES}/{ask.node[:60]}")
        chosen = settings_of(state)
        return chosen, check(chosen, ask, self._vault.cluster, self._node, signer, listed)


def check(
    chosen: UnlockSettings, ask: UnlockAsk, cluster: str, giver: str, signer: str, listed: NodeRecord | None
) -> NodeRecord:
    """As it is listed. Raises Forbidden for what this member does not unlock. Pure."""
    if chosen.auto_unlock is not AutoUnlock.PEERS:
        raise Forbidden(f"the cluster's setting auto_unlock is {chosen.auto_unlock}", hint=_BY_PERSON)
    if ask.cluster != cluster:
        raise Forbidden("the request for the key is of another cluster")
    if ask.node == giver:
        raise Forbidden(f"{giver} is this very node")
    if listed is None or listed.key != signer:
        raise Forbidden(f"{ask.node[:60]} is no node of this cluster, or was removed", hint="let it join again")
    if listed.role is not Role.MEMBER:
        raise Forbidden(f"{ask.node} is a {listed.role}, which gets no keys")
    return listed


def settings_of(state: State) -> UnlockSettings:
    """Raises StoreCorrupt: what cannot be read allows nothing."""
    found = state.get(*SETTINGS)
    if found is None:
        return UnlockSettings()
    try:
        return msgspec.msgpack.decode(found.body, type=UnlockSettings)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"the cluster's settings cannot be read: {error}") from None

"""POST /unlock gives the store's key to a member that is locked; the loop asks for it when this node is.

What goes through here is sealed: the ask is signed with this node's key, which the api has for its certificate, and the answer
opens in the persistence that asked, nowhere else. Members are asked one after the other; a round that nobody ended well is
followed by a longer pause, or by the next news of the lock or of who leads, for then somebody has just been unlocked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from piccolod.errors import Conflict, Forbidden, PiccoloError, Unavailable
from piccolod.pki import proof
from piccolod.pki.identity import Role
from piccolod.protocol.events import LeadershipRoleChanged, LockStateChanged
from piccolod.protocol.unlocking import PURPOSE, AskUnlock, GiveKey, SealedKey, SignedAsk, TakeKey
from services.api.core import Core
from services.api.rpc.app import Knock, Route
from services.api.rpc.client import Client, Place
from services.api.rpc.files import NodeFiles
from services.api.rpc.places import Places
from services.api.rpc.wire import MEDIA_TYPE, decoded

PATH: Final = "/unlock"
_BODY_BYTES: Final = 4 * 1024
_ANSWER_BYTES: Final = 4 * 1024
_WITHIN_S: Final = 14.0
_ASK_S: Final = 16.0
_TAKE_S: Final = 30.0  # the fold of the log
FIRST_S: Final = 1.0
LONGEST_S: Final = 30.0


class Unlocking:
    """`told(reason)`: why this node is still locked; empty when it is not, or was not looked at yet."""

    def __init__(self, core: Core, files: NodeFiles, client: Client, places: Places, told: Callable[[str], None]) -> None:
        self._core = core
        self._files = files
        self._client = client
        self._places = places
        self._told = told
        self._news = asyncio.Event()

    @property
    def route(self) -> Route:
        return Route(self._give, MEDIA_TYPE, _BODY_BYTES, _WITHIN_S, roles=(Role.MEMBER,))

    async def _give(self, knock: Knock) -> bytes:
        """The ask has to be the peer's own: nobody asks for another node. The rest persistence looks at."""
        signed = decoded(knock.body, SignedAsk, "request for the key", msgspec.msgpack.decode)
        if knock.peer is None or _key_of(signed) != knock.key:
            raise Forbidden("a member asks for itself alone")
        return msgspec.msgpack.encode(await self._core.order(GiveKey(signed=signed), timeout_s=_WITHIN_S))

    # --- this node is locked

    async def run(self) -> None:
        self._core.module.on(LockStateChanged, lambda _: self._news.set())
        self._core.module.on(LeadershipRoleChanged, lambda _: self._news.set(), key="kernel")
        pause_s = FIRST_S
        while True:
            self._news.clear()
            if not self._is_locked():
                self._told("")
                await self._news.wait()
                pause_s = FIRST_S
                continue
            await self.once()
            try:
                async with asyncio.timeout(pause_s):
                    await self._news.wait()
                pause_s = FIRST_S
                await asyncio.sleep(FIRST_S)  # news come in swarms
            except TimeoutError:
                pause_s = min(2 * pause_s, LONGEST_S)

    def _is_locked(self) -> bool:
        lock = self._core.seen.lock
        return lock is not None and lock.locked and lock.initialized

    async def once(self) -> bool:
        """One round. Whether this node was unlocked."""
        try:
            own = self._files.signed().identity
            if own.role is not Role.MEMBER:
                self._told("a witness gets no keys")
                return False
            others = self._places.members(but=own.node)
        except PiccoloError as error:
            self._told(f"no member was asked: {error.detail}")
            return False
        why = []
        for place in others:
            try:
                await self._ask(place)
                self._told("")
                return True
            except _NotAsked as reason:
                self._told(str(reason))
                return False
            except PiccoloError as error:
                why.append(f"{place.node}: {error.detail}")
        self._told("no member has unlocked it: " + ("; ".join(why) or "none is known"))
        return False

    async def _ask(self, place: Place) -> None:
        """Raises _NotAsked when there is nothing to ask for, PiccoloError with what was in the way."""
        try:
            ask = (await self._core.ask(AskUnlock())).ask
        except PiccoloError as error:
            raise _NotAsked(error.detail) from error
        body = msgspec.msgpack.encode(self._files.sign_ask(ask))
        answer = await self._client.post(place, PATH, body, MEDIA_TYPE, timeout_s=_ASK_S, most_bytes=_ANSWER_BYTES)
        try:
            key = msgspec.msgpack.decode(answer, type=SealedKey)
        except msgspec.MsgspecError as error:
            raise Unavailable(f"its answer cannot be read: {error}") from None
        if key.giver != place.node:
            raise Forbidden(f"it answered in the name of {key.giver[:60]}")
        try:
            await self._core.order(TakeKey(key=key), timeout_s=_TAKE_S)
        except Conflict as error:
            raise _NotAsked(error.detail) from error
        self._core.log.info("was unlocked by a member", giver=place.node)


class _NotAsked(Exception):
    """There is nothing to ask for now: not locked, locked on purpose, no session yet."""


def _key_of(signed: SignedAsk) -> str:
    return proof.signer(signed.key, PURPOSE, signed.ask, signed.signature)

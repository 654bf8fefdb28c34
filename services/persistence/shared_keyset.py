"""The keyset of the cluster: agreed on in etcd, kept on every node, changed by the leader alone. The highest version wins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from piccolod import clock
from piccolod.errors import Conflict, LeaderHint, NoLeader, NotLeader, OutcomeUnknown, PiccoloError, StoreCorrupt, TermOver
from piccolod.leadership.gate import Token
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.protocol import log as wire
from piccolod.protocol.log import GetKeyset, PutKeyset
from services.persistence import keyset as keysets
from services.persistence.catch_up import ASK_S, Ask
from services.persistence.cluster_commit import RESOLVE_PAUSE_S, RESOLVE_S, UNKNOWN
from services.persistence.commit_point import Gatekeeper
from services.persistence.keyset import Keyset
from services.persistence.passwords import Passwords
from services.persistence.secret import SecretKey

_CHANGED: Final = "the keyset was changed by somebody else meanwhile"


class SharedKeyset:
    """`key`: the SDEK while it is held. Nothing is believed that it does not prove."""

    def __init__(
        self,
        cluster: str,
        ask: Ask,
        gate: Gatekeeper,
        leader: Callable[[], LeaderHint | None],
        passwords: Callable[[], Passwords],
        key: Callable[[], SecretKey | None],
    ) -> None:
        self._cluster = cluster
        self._ask = ask
        self._gate = gate
        self._leader = leader
        self._passwords = passwords
        self._key = key
        self.problem = ""

    async def look(self) -> None:
        """Takes the cluster's keyset if it is newer; the leader gives its own if that is. Raises what consensus answers."""
        found, mod = await self._read()
        passwords = self._passwords()
        await passwords.save_again()
        mine = passwords.keyset
        self.problem = ""
        try:
            if found is not None and mine is not None:
                await passwords.consider(found, self._key())
            if mine is not None and self._leads() and (found is None or found.version < mine.version):
                await self._put(mine, mod, self._gate.check(RESOURCE_KERNEL))
        except StoreCorrupt as error:
            self.problem = error.detail
        except TermOver:
            return

    async def fetch(self) -> Keyset | None:
        """For a node that has none of its own."""
        return (await self._read())[0]

    async def prepare(self) -> None:
        self._token()
        await self.look()
        if self.problem:
            raise StoreCorrupt(self.problem, hint="see `piccoloctl health`")

    async def publish(self, keyset: Keyset) -> None:
        token = self._token()
        found, mod = await self._read()
        if found is not None and found.version >= keyset.version:
            raise Conflict(_CHANGED, hint="try again")
        await self._put(keyset, mod, token)

    async def _put(self, keyset: Keyset, seen_mod: int, token: Token) -> None:
        """Conflict may be the echo of one's own unknown write: what is there is looked at before anybody is told.

        Once a put is in doubt no refusal of its repetition says anything about it.
        """
        content = keysets.encode(keyset)
        give_up_at, in_doubt = clock.now() + RESOLVE_S, False
        while True:
            try:
                await self._ask(PutKeyset(token=token.token, seen_mod=seen_mod, keyset=content), timeout_s=ASK_S)
                return
            except Conflict:
                pass
            except UNKNOWN:
                in_doubt = True
            except PiccoloError:
                if not in_doubt:
                    raise
            there = await self._there()
            if there is not None and there.keyset == content:
                return
            if there is not None and there.mod != seen_mod:
                raise Conflict(_CHANGED, hint="try again")
            if clock.now() >= give_up_at:
                raise OutcomeUnknown("whether the keyset was changed is not known", hint="try the new password, then the old")
            await asyncio.sleep(RESOLVE_PAUSE_S)

    async def _there(self) -> wire.Keyset | None:
        try:
            return await self._ask(GetKeyset(), timeout_s=ASK_S)
        except PiccoloError:
            return None

    async def _read(self) -> tuple[Keyset | None, int]:
        """Raises StoreCorrupt for one that cannot be read or is another cluster's."""
        there = await self._ask(GetKeyset(), timeout_s=ASK_S)
        if not there.keyset:
            return None, there.mod
        found = keysets.decode(there.keyset)
        if found is None or found.cluster != self._cluster:
            self.problem = "the cluster's keyset cannot be read, or is of another cluster: the former one stays"
            raise StoreCorrupt(self.problem)
        return found, there.mod

    def _leads(self) -> bool:
        try:
            self._gate.check(RESOURCE_KERNEL)
        except TermOver:
            return False
        return self._key() is not None

    def _token(self) -> Token:
        try:
            return self._gate.check(RESOURCE_KERNEL)
        except TermOver as over:
            leader = self._leader()
            if leader is not None:
                raise NotLeader(f"{leader.node} leads the control store", hint="change it there", leader=leader) from None
            raise NoLeader(
                f"this node does not lead the control store: {over.reason}", hint="try again in a moment", retry_after_s=1.0
            ) from None

"""`unlock/<node>`: that one session of a node is given the store's key, committed before the key leaves this node.

Without a quorum nothing is committed and nobody gets the key. Two machines that run under one name (a cloned disk) take each
other's session away again and again: the session that a grant names has to outlive it, so that neither of them gets the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from piccolod import clock
from piccolod.errors import Conflict, Forbidden, NoLeader, OutcomeUnknown, PiccoloError, StoreRestored
from piccolod.leadership import keys, transactions
from piccolod.leadership.actions import RESTORED_HINT
from piccolod.leadership.keys import SessionRecord
from piccolod.leadership.state import Session
from piccolod.leadership.transactions import Compare, Field, Kind, Outcome, Put, Transaction
from piccolod.leadership.view import Record
from piccolod.module import Caller, Module
from piccolod.protocol.base import Nothing
from piccolod.protocol.cluster import KnownMember
from piccolod.protocol.unlocking import GrantUnlock
from services.consensus.cluster_records import MEMBER, NODE, UNLOCK, GrantRecord
from services.consensus.driver import Driver
from services.consensus.etcd_store import Snapshot
from services.consensus.sightings import Sightings

_PERSON: Final = "a person unlocks it: `piccoloctl unlock` on it"
# Beyond two beats, in which the other machine learns that its session is gone, until it has taken the name back.
_TAKES_BACK_S: Final = 1.0


class UnlockGrants:
    def __init__(self, module: Module, driver: Driver) -> None:
        self._module = module
        self._driver = driver
        self._node = module.config.node.name
        self.sightings: Final = Sightings(driver, module.paths.cluster / "sightings.json", module.log)

    def start(self) -> None:
        self._module.serve(GrantUnlock, self._grant)
        self._module.spawn(self.sightings.run(), name="sightings")

    async def _grant(self, request: GrantUnlock, caller: Caller) -> Nothing:
        seen_ms = (self.sightings.last_ms(request.node), request.known_ms)
        check_seen(request.node, seen_ms, request.within_s, clock.wall_ms())
        mod = await self._commit(request)
        timing = self._driver.state.config.timing
        await self._driver.until(lambda: self._is_replaced(request, mod), 2 * timing.beat_s + _TAKES_BACK_S)
        seen, mods = await self._look(request.node)
        check_session(request, seen.records.get(keys.SESSION + request.node))
        if mods.get(UNLOCK + request.node) != mod:
            raise _another(request.node)
        self._module.log.info("granted an unlock", node=request.node, sid=request.sid, boot_id=request.boot_id)
        return Nothing()

    def _is_replaced(self, request: GrantUnlock, mod: int) -> bool:
        """A view of before the grant may not have seen the session yet, and says nothing."""
        view = self._driver.state.view
        return view.rev >= mod and view.sid(request.node) != request.sid

    async def _commit(self, request: GrantUnlock) -> int:
        """The revision of the grant."""
        node, key, own = request.node, UNLOCK + request.node, self._driver.state.session
        if own is None:
            raise NoLeader("this node has no session in etcd", hint="try again in a moment")
        seen, mods = await self._look(node)
        check_member(node, seen.records.get(NODE + node))
        check_session(request, seen.records.get(keys.SESSION + node))
        compares = (
            transactions.same_session(self._node, own.sid),
            transactions.same_gen(own.gen),
            transactions.same_session(node, request.sid),
            Compare(NODE + node, Field.MOD, seen.records[NODE + node].mod),
            Compare(key, Field.MOD, mods.get(key, 0)),
        )
        grant = GrantRecord(node, request.sid, request.boot_id, self._node, clock.wall_ms())
        done = await self._driver.put(Transaction(Kind.RECORD, compares, (Put(key, grant),)))
        if done.outcome is Outcome.REFUSED:
            raise await self._refusal(request, own)
        if done.error is not None:
            raise done.error
        if done.header is None or self._driver.state.restored:
            raise OutcomeUnknown("etcd is not the one that was written to", hint=RESTORED_HINT)
        return done.header.rev

    async def _refusal(self, request: GrantUnlock, own: Session) -> PiccoloError:
        """Why the grant was refused: what it compares, looked at again. Raises StoreUnavailable, StoreRestored."""
        seen, _ = await self._look(request.node)
        gen, session = seen.records.get(keys.GEN), seen.records.get(keys.SESSION + self._node)
        if gen is None or gen.value != own.gen:
            return StoreRestored("etcd was restored, or is another one", hint=RESTORED_HINT)
        if session is None or session.create != own.sid:
            return NoLeader("this node's own session in etcd has just ended", hint="try again in a moment")
        try:
            check_member(request.node, seen.records.get(NODE + request.node))
        except Forbidden as error:
            return error
        return _another(request.node)

    async def _look(self, node: str) -> tuple[Snapshot, dict[str, int]]:
        """As of now, by etcd's quorum. Raises StoreUnavailable, StoreRestored."""
        driver, least = self._driver, self._driver.state.highest
        within_s = driver.state.config.timing.rpc_s
        # Not judged: what comes of it before the grant its transaction compares.
        mods = await driver.store.revisions((UNLOCK + node,), within_s)
        seen = await driver.store.read(within_s)
        if not driver.believes(seen.header, least):
            raise StoreRestored("etcd was restored, or is another one", hint=RESTORED_HINT)
        return seen, mods


def check_seen(node: str, at_ms: Sequence[int], within_s: float, now_ms: int) -> None:
    """Raises Forbidden when it was not seen unlocked, nor let in, within that time. A clock set back proves nothing. Pure.

    `at_ms`: when it was; 0: never. One of them in the future, by a clock that stood wrong, does not outdo the others.
    """
    ages_s = [(now_ms - each) / 1000 for each in at_ms if each]
    if not ages_s:
        raise Forbidden(f"{node} was never seen unlocked by this node", hint=_PERSON)
    ago_s = min(ages_s, key=abs)
    if abs(ago_s) >= within_s:
        raise Forbidden(
            f"{node} was last seen unlocked {ago_s / 60:.0f} min ago, and auto_unlock_within_s is {within_s:g}", hint=_PERSON
        )


def check_member(node: str, record: Record[KnownMember] | None) -> None:
    if record is None:
        raise Forbidden(f"{node} is no node of this cluster, or was removed", hint="let it join again")
    if record.value.role != MEMBER:
        raise Forbidden(f"{node} is a {record.value.role}, which gets no keys")


def check_session(request: GrantUnlock, session: Record[SessionRecord] | None) -> None:
    """Raises Conflict unless the one who asks is who is in session under that name."""
    if session is None or (session.create, session.value.boot_id) != (request.sid, request.boot_id):
        raise _another(request.node)


def _another(node: str) -> Conflict:
    return Conflict(
        f"another session of {node} began meanwhile: it restarts, or two machines run under its name",
        hint=f"two machines: `piccoloctl nodes remove {node}`, and let one of them join again",
    )

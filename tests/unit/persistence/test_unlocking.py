"""A locked member gets the store's key from an unlocked one, and each thing that must keep it from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from piccolod import clock
from piccolod.errors import Conflict, Forbidden, Invalid, Locked, PiccoloError, StoreUnavailable, Unavailable
from piccolod.pki import authority as pki
from piccolod.pki import proof
from piccolod.pki.identity import Role
from piccolod.protocol.joining import ForgetNode
from piccolod.protocol.persistence import Commit, GetCryptoStatus, Lock, Unlock, Write
from piccolod.protocol.unlocking import PURPOSE, AskUnlock, GiveKey, GrantUnlock, SealedKey, SignedAsk, TakeKey, UnlockAsk
from services.persistence import key_seal
from services.persistence.admission import NodeRecord
from services.persistence.key_seal import Asking
from services.persistence.secret import SecretKey

from .house import until
from .town import PASSWORD, Node, Town, in_town


class Pair:
    """n1 leads and is unlocked; n2 is locked, listed with its key, and in session. The setting is `peers`."""

    def __init__(self, town: Town, n1: Node, n2: Node) -> None:
        self.town, self.n1, self.n2 = town, n1, n2
        self.key = pki.make_key()

    async def settings(self, **chosen: Any) -> None:
        await commit(self.n1, "settings", "cluster", chosen)

    async def list_n2(self, key: bytes | None = None, role: Role = Role.MEMBER) -> None:
        digest = pki.key_of_request(pki.make_request(key or self.key))
        record = NodeRecord(role=role, address="10.0.0.2", key=digest, joined_ms=77)
        await commit(self.n1, "nodes", "n2", msgspec.to_builtins(record))

    async def ask(self, **other: Any) -> SignedAsk:
        """What n2 asks, or something near it, signed by its key."""
        text = (await self.n2.ask(AskUnlock())).ask
        if other:
            text = msgspec.msgpack.encode(msgspec.structs.replace(msgspec.msgpack.decode(text, type=UnlockAsk), **other))
        return sign(self.key, text)

    async def give(self, signed: SignedAsk | None = None) -> SealedKey:
        return await self.n1.ask(GiveKey(signed=signed or await self.ask()))

    async def unlocked(self) -> bool:
        return not (await self.n2.ask(GetCryptoStatus())).locked


def sign(key: bytes, text: bytes) -> SignedAsk:
    public, signature = proof.sign(key, PURPOSE, text)
    return SignedAsk(ask=text, key=public, signature=signature)


async def commit(node: Node, collection: str, id: str, body: dict[str, Any] | None) -> None:
    await node.ask(Commit(writes=(Write(collection=collection, id=id, body=body),), author="test"), caller="persistence")


def with_pair(test: Callable[[Pair], Awaitable[None]]) -> Callable[[Path, None], None]:
    async def run(town: Town) -> None:
        n1 = await town.found()
        n2 = await town.join("n2", unlocked=False)
        n2._clear()  # in session, and leads nothing
        pair = Pair(town, n1, n2)
        await pair.settings(auto_unlock="peers", title="Home")
        await pair.list_n2()
        await until(lambda: n2.rev == town.etcd.head_rev, "n2 has all")
        await test(pair)

    run.__name__ = test.__name__
    return in_town(run)


# --- it works


@with_pair
async def test_a_locked_member_is_unlocked_and_keeps_the_key_as_after_a_password(pair: Pair) -> None:
    await pair.n2.ask(TakeKey(key=await pair.give()))
    assert await pair.unlocked()
    assert await pair.n2.get("old1") == 1
    assert pair.n2.deposits["sdek"] == pair.n1.deposits["sdek"]
    (granted,) = pair.town.granted
    assert granted == GrantUnlock(node="n2", sid=1, boot_id=clock.boot_id(), within_s=3600.0, known_ms=77)


@with_pair
async def test_how_long_it_may_have_been_away_is_a_setting(pair: Pair) -> None:
    await pair.settings(auto_unlock="peers", auto_unlock_within_s=120)
    await pair.give()
    assert pair.town.granted[-1].within_s == 120


# --- what the giver refuses


async def refused(pair: Pair, kind: type[PiccoloError], words: str, signed: SignedAsk | None = None) -> None:
    signed = signed or await pair.ask()
    with pytest.raises(kind, match=words):
        await pair.give(signed)
    assert pair.town.granted == [], "nothing was granted"


@pytest.mark.parametrize("chosen", [{"auto_unlock": "never"}, {"title": "nothing is said of it"}], ids=["never", "absent"])
def test_nothing_is_given_without_the_setting(chosen: dict[str, Any], tmp_path: Path, cheap_passwords: None) -> None:
    @with_pair
    async def refuses(pair: Pair) -> None:
        await pair.settings(**chosen)
        await refused(pair, Forbidden, "auto_unlock is never")

    refuses(tmp_path, cheap_passwords)


@with_pair
async def test_a_node_that_was_removed_gets_nothing(pair: Pair) -> None:
    await commit(pair.n1, "nodes", "n2", None)
    await refused(pair, Forbidden, "no node of this cluster, or was removed")


@with_pair
async def test_a_name_that_has_another_key_by_now_gets_nothing(pair: Pair) -> None:
    await pair.list_n2(pki.make_key())
    await refused(pair, Forbidden, "no node of this cluster, or was removed")


@with_pair
async def test_a_witness_gets_nothing(pair: Pair) -> None:
    await pair.list_n2(role=Role.WITNESS)
    await refused(pair, Forbidden, "a witness, which gets no keys")


@with_pair
async def test_a_node_of_another_cluster_and_the_giver_itself_get_nothing(pair: Pair) -> None:
    await refused(pair, Forbidden, "another cluster", await pair.ask(cluster="ffff"))
    await refused(pair, Forbidden, "this very node", await pair.ask(node="n1"))


@with_pair
async def test_what_is_not_signed_by_the_listed_key_gets_nothing(pair: Pair) -> None:
    good = await pair.ask()
    forged = msgspec.structs.replace(good, ask=good.ask[:-1] + bytes([good.ask[-1] ^ 1]))
    await refused(pair, Invalid, "not signed by the key", forged)
    await refused(pair, Forbidden, "no node of this cluster", sign(pki.make_key(), good.ask))


@with_pair
async def test_a_giver_that_is_locked_gives_nothing(pair: Pair) -> None:
    signed = await pair.ask()
    await pair.n1.ask(Lock())
    await refused(pair, Locked, "locked", signed)


@with_pair
async def test_without_a_committed_grant_there_is_no_key(pair: Pair) -> None:
    async def no_quorum() -> None:
        raise StoreUnavailable("etcd has no quorum")

    pair.town.while_granting = no_quorum
    await refused(pair, StoreUnavailable, "no quorum")


@with_pair
async def test_what_changes_while_the_grant_is_made_counts(pair: Pair) -> None:
    async def removed() -> None:
        await pair.n1.ask(ForgetNode(node="n2", author="admin"))

    pair.town.while_granting = removed
    with pytest.raises(Forbidden, match="was removed"):
        await pair.give()


# --- what the asker refuses


@with_pair
async def test_a_key_for_a_former_ask_opens_nothing(pair: Pair) -> None:
    given = await pair.give()
    await pair.n2.ask(AskUnlock())
    with pytest.raises(Forbidden, match="not sealed for this ask"):
        await pair.n2.ask(TakeKey(key=given))
    with pytest.raises(Conflict, match="no ask"):
        await pair.n2.ask(TakeKey(key=given))
    assert not await pair.unlocked()


@with_pair
async def test_another_key_than_the_store_has_is_not_used_and_the_store_stays_as_it_is(pair: Pair) -> None:
    text = (await pair.n2.ask(AskUnlock())).ask
    with pytest.raises(Forbidden, match="does not open"):
        await pair.n2.ask(TakeKey(key=key_seal.seal(SecretKey.random(), text, "n1")))
    assert not await pair.unlocked()
    assert not list(pair.n2.paths.store.glob("*.corrupt-*"))
    await pair.n2.unlock()


@with_pair
async def test_a_node_without_a_session_does_not_ask(pair: Pair) -> None:
    pair.n2.paths.page.unlink()
    with pytest.raises(StoreUnavailable, match="no session"):
        await pair.n2.ask(AskUnlock())


# --- locked on purpose


@with_pair
async def test_a_lock_on_purpose_holds_over_restarts_until_a_person_unlocks(pair: Pair) -> None:
    await pair.n2.ask(TakeKey(key=await pair.give()))
    await pair.n2.ask(Lock())
    for _ in range(2):
        with pytest.raises(Conflict, match="locked on purpose"):
            await pair.n2.ask(AskUnlock())
        await pair.n2.again()
    await pair.n2.ask(Unlock(password=PASSWORD, source="test"))
    await pair.n2.ask(Lock(stays=False))
    assert (await pair.n2.ask(AskUnlock())).ask


@with_pair
async def test_a_lock_that_died_before_the_key_was_forgotten_did_not_happen(pair: Pair) -> None:
    await pair.n2.unlock()
    kept = dict(pair.n2.deposits)
    await pair.n2.ask(Lock())
    pair.n2.deposits.update(kept)  # as it was between the mark and the supervisor's answer
    await pair.n2.again()
    assert await pair.unlocked()
    await pair.n2.ask(Lock(stays=False))
    assert (await pair.n2.ask(AskUnlock())).ask, "nothing says any more that it was locked on purpose"


@with_pair
async def test_a_key_that_the_supervisor_could_not_be_told_to_forget_is_forgotten_later(pair: Pair) -> None:
    await pair.n2.unlock()
    module = pair.n2.module
    real = module.drop_deposits

    async def away() -> None:
        raise Unavailable("the supervisor does not answer")

    module.drop_deposits = away  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await pair.n2.ask(Lock())
    assert pair.n2.deposits
    module.drop_deposits = real  # type: ignore[method-assign]
    assert not module.stopping.is_set(), "the next life would open with it"
    await until(lambda: not pair.n2.deposits, "it is forgotten")
    await until(module.stopping.is_set, "the process that held the key ends, too")
    await pair.n2.again()
    assert not await pair.unlocked()


@with_pair
async def test_a_lock_on_purpose_beats_a_key_that_is_on_its_way(pair: Pair) -> None:
    given = await pair.give()
    await pair.n2.ask(Lock())
    with pytest.raises(Conflict, match="locked on purpose"):
        await pair.n2.ask(TakeKey(key=given))
    assert not await pair.unlocked()


@with_pair
async def test_a_reboot_ends_a_lock_on_purpose(pair: Pair) -> None:
    await pair.n2.unlock()
    await pair.n2.ask(Lock())
    pair.n2.paths.lock_mark.write_text("the boot before")
    assert (await pair.n2.ask(AskUnlock())).ask


@with_pair
async def test_a_lock_that_cannot_be_remembered_is_refused_and_changes_nothing(pair: Pair) -> None:
    await pair.n2.unlock()
    pair.n2.paths.lock_mark.mkdir()
    with pytest.raises(StoreUnavailable, match="cannot be remembered"):
        await pair.n2.ask(Lock())
    assert await pair.unlocked()


# --- the seal


def test_what_was_sealed_for_one_ask_opens_in_no_other_and_under_no_other_name() -> None:
    mine, other = (Asking("c", "n2", 5, "boot") for _ in range(2))
    key = SecretKey.random()
    given = key_seal.seal(key, mine.text, "n1")
    assert mine.open(given).raw() == key.raw()
    assert key.raw() not in given.sealed
    for asking, answer in (
        (other, given),
        (mine, msgspec.structs.replace(given, giver="n3")),
        (mine, msgspec.structs.replace(given, sealed=given.sealed[:-1] + bytes([given.sealed[-1] ^ 1]))),
        (mine, msgspec.structs.replace(given, public=bytes(32))),
    ):
        with pytest.raises(Forbidden):
            asking.open(answer)


@pytest.mark.parametrize("public", [b"", bytes(32)], ids=["none", "low order"])
def test_nothing_is_sealed_to_what_is_no_key(public: bytes) -> None:
    ask = UnlockAsk(cluster="c", node="n2", sid=5, boot_id="b", public=public)
    with pytest.raises(Invalid):
        key_seal.seal(SecretKey.random(), msgspec.msgpack.encode(ask), "n1")

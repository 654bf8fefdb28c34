"""One password for the cluster: changed by the leader, known everywhere, and taken from nobody who never had the key."""

from __future__ import annotations

import pytest

from piccolod.errors import Conflict, NotLeader, OutcomeUnknown, StoreCorrupt, WrongPassword
from piccolod.protocol.base import Level
from piccolod.protocol.persistence import ChangePassword, GetCryptoStatus, Lock, NewRecovery, ResetPassword, VerifyPassword
from services.persistence import keyset as keysets
from services.persistence import shared_keyset
from services.persistence.keyset import Keyset

from .conftest import CHEAP
from .house import until
from .town import PASSWORD, Node, Town, in_town

NEW = "another password"


def change(new: str = NEW, old: str = PASSWORD) -> ChangePassword:
    return ChangePassword(old=old, new=new, source="test")


async def version(node: Node) -> int:
    return (await node.ask(GetCryptoStatus())).keyset_version


async def knows(node: Node, password: str, wrong: str) -> None:
    await node.ask(VerifyPassword(password=password, source="test"))
    with pytest.raises(WrongPassword):
        await node.ask(VerifyPassword(password=wrong, source="test"))


def on_disk(node: Node) -> Keyset:
    found = keysets.load(node.paths.keyset)
    assert found is not None
    return found


@in_town
async def test_a_password_that_the_leader_changed_is_the_one_of_every_node(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    n3 = await town.join("n3", unlocked=False)
    assert (await n1.ask(change())).keyset_version == 2
    assert on_disk(n1) == keysets.decode(town.etcd.keyset)
    await until(lambda: on_disk(n2).version == 2, "the unlocked follower has it")
    await knows(n2, NEW, PASSWORD)
    await until(lambda: n3.service._vault.passwords.offered is not None, "the locked one was offered it")
    assert on_disk(n3).version == 1, "and keeps the genuine one until it is proven"
    with pytest.raises(WrongPassword):
        await n3.unlock(PASSWORD)
    await n3.unlock(NEW)
    assert on_disk(n3).version == 2
    assert not n3.paths.keyset.with_name("keyset.offered.json").exists()


@in_town
async def test_a_follower_changes_no_password_and_says_who_does(town: Town) -> None:
    await town.found()
    n2 = await town.join("n2")
    for request in (change(), NewRecovery(password=PASSWORD, source="test")):
        with pytest.raises(NotLeader) as caught:
            await n2.ask(request)
        assert caught.value.leader is not None and caught.value.leader.node == "n1"
    assert await version(n2) == 1
    assert keysets.decode(town.etcd.keyset) == on_disk(n2)


@in_town
async def test_a_node_that_was_away_keeps_the_old_password_until_it_has_caught_up(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    n2.consensus.cut_off = True
    await n1.ask(change())
    await knows(n2, PASSWORD, NEW)
    n2.consensus.cut_off = False
    await until(lambda: on_disk(n2).version == 2, "it has caught up")
    await knows(n2, NEW, PASSWORD)


@pytest.mark.parametrize("fate", ["made", "lost"])
def test_an_unknown_change_is_read_and_its_own_echo_is_no_conflict(fate: str, request: pytest.FixtureRequest) -> None:
    @in_town
    async def test(town: Town) -> None:
        n1 = await town.found()
        n1.consensus.unknown.append(fate)
        assert (await n1.ask(change())).keyset_version == 2
        await knows(n1, NEW, PASSWORD)
        assert keysets.decode(town.etcd.keyset) == on_disk(n1)

    test(request.getfixturevalue("tmp_path"), request.getfixturevalue("cheap_passwords"))


@in_town
async def test_an_unknown_put_that_was_made_and_is_sent_again_meets_a_conflict_that_is_its_own(town: Town) -> None:
    n1 = await town.found()
    shared = n1.service._membership._member._keyset  # type: ignore[union-attr]
    there = shared._there
    reads = 0

    async def blind_once() -> object:
        nonlocal reads
        reads += 1
        return None if reads == 1 else await there()  # so that the put is sent again first

    shared._there = blind_once
    n1.consensus.unknown.append("made")
    assert (await n1.ask(change())).keyset_version == 2
    assert reads == 2
    await knows(n1, NEW, PASSWORD)


def test_a_change_whose_outcome_cannot_be_read_is_unknown_and_both_ends_are_found_out(
    tmp_path: object, cheap_passwords: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_keyset, "RESOLVE_S", 0.2)

    @in_town
    async def test(town: Town) -> None:
        n1 = await town.found()
        n1.consensus.unknown.append("late, cut off")
        with pytest.raises(OutcomeUnknown):
            await n1.ask(change())
        assert await version(n1) == 1
        n1.consensus.arrive()
        n1.consensus.cut_off = False
        await until(lambda: on_disk(n1).version == 2, "it was made after all, and is taken")
        await knows(n1, NEW, PASSWORD)

    test(tmp_path, cheap_passwords)  # type: ignore[arg-type]


@in_town
async def test_of_two_changes_at_once_one_is_told_of_the_other(town: Town) -> None:
    n1 = await town.found()
    passwords = n1.service._vault.passwords
    key = n1.service._vault.key_if_held()
    assert key is not None and passwords.keyset is not None
    theirs = keysets.with_password(passwords.keyset, key, "of somebody else", CHEAP)
    prepared = passwords._shared.prepare  # type: ignore[union-attr]

    async def prepare_and_lose() -> None:
        await prepared()
        town.etcd.revision += 1
        town.etcd.keyset, town.etcd.keyset_mod = keysets.encode(theirs), town.etcd.revision

    passwords._shared.prepare = prepare_and_lose  # type: ignore[union-attr, method-assign]
    with pytest.raises(Conflict):
        await n1.ask(change())
    await until(lambda: on_disk(n1).version == 2, "the other one's is taken")
    await knows(n1, "of somebody else", NEW)


# --- strangers


def strangers(town: Town, number: int, of: Keyset) -> Keyset:
    """Made by who can write etcd and never had the key. It even knows the user's password."""
    made, _ = keysets.create(town.cluster, f"of a stranger {number}", CHEAP)
    made = Keyset(made.format, made.cluster, of.version + number, made.password, made.recovery, made.proof)
    town.etcd.revision += 1
    town.etcd.keyset, town.etcd.keyset_mod = keysets.encode(made), town.etcd.revision
    return made


@in_town
async def test_an_unlocked_node_takes_no_strangers_keyset_and_names_it(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    genuine = on_disk(n1)
    strangers(town, 1, genuine)
    await until(lambda: n2.module.healths[-1][0] is Level.WARN, "health names it")
    assert "was not made by who had" in n2.module.healths[-1][1]
    assert on_disk(n2) == genuine
    await knows(n2, PASSWORD, "of a stranger 1")
    with pytest.raises(StoreCorrupt):
        await n1.ask(change())


@in_town
async def test_two_strangers_keysets_in_a_row_leave_a_locked_node_its_genuine_one(town: Town) -> None:
    await town.found()
    n2 = await town.join("n2")
    genuine = on_disk(n2)
    await n2.ask(Lock())
    for number in (1, 2):
        made = strangers(town, number, genuine)
        await until(lambda made=made: n2.service._vault.passwords.offered == made, "it was offered")
    await n2.again()
    assert n2.service._vault.passwords.offered == made
    with pytest.raises(WrongPassword):
        await n2.unlock("neither of them")
    await n2.unlock(PASSWORD)
    assert on_disk(n2) == genuine
    assert await n2.get("old1") == 1


@in_town
async def test_a_strangers_keyset_under_the_users_own_password_opens_nothing_and_costs_nothing(town: Town) -> None:
    await town.found()
    n2 = await town.join("n2")
    genuine = on_disk(n2)
    await n2.ask(Lock())
    made, _ = keysets.create(town.cluster, PASSWORD, CHEAP)
    made = Keyset(made.format, made.cluster, 7, made.password, None, made.proof)
    town.etcd.revision += 1
    town.etcd.keyset, town.etcd.keyset_mod = keysets.encode(made), town.etcd.revision
    await until(lambda: n2.service._vault.passwords.offered == made, "it was offered")
    await n2.unlock(PASSWORD)
    assert on_disk(n2) == genuine
    assert await n2.get("old1") == 1


@in_town
async def test_a_keyset_that_cannot_be_read_changes_nothing(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    genuine = on_disk(n2)
    town.etcd.revision += 1
    town.etcd.keyset, town.etcd.keyset_mod = b"{garbage", town.etcd.revision
    await until(lambda: n2.module.healths[-1][0] is Level.WARN, "health names it")
    assert on_disk(n2) == genuine
    assert await n1.put("a", 1) == 5, "the log goes on"


# --- the words


@in_town
async def test_the_words_open_a_cluster_that_is_locked_everywhere_and_set_its_password(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    words = (await n1.ask(NewRecovery(password=PASSWORD, source="test"))).words
    await until(lambda: on_disk(n2).version == 2, "the follower has it")
    with pytest.raises(NotLeader):
        await n2.ask(ResetPassword(words=words, new=NEW, source="test"))
    await n2.ask(Lock())
    await n1.ask(Lock())
    assert not (await n2.ask(ResetPassword(words=words, new=NEW, source="test"))).locked
    assert n2.leads
    await knows(n2, NEW, PASSWORD)
    await until(lambda: n1.service._vault.passwords.offered is not None, "the other one was offered it")
    await n1.unlock(NEW)


@in_town
async def test_a_damaged_keyset_is_replaced_by_the_clusters(town: Town) -> None:
    await town.found()
    n2 = await town.join("n2")
    whole = n2.paths.keyset.read_bytes()
    await n2.end()
    n2.paths.keyset.write_bytes(whole[:-10])
    await n2.begin()
    assert n2.paths.keyset.read_bytes() == whole
    assert [file.read_bytes() for file in n2.paths.store.glob("keyset.json.corrupt-*")] == [whole[:-10]]
    await knows(n2, PASSWORD, NEW)

"""The copy of a member: damaged, gone, of another history; and what the lock tells."""

from __future__ import annotations

from pathlib import Path

from piccolod.protocol.base import Level
from piccolod.protocol.events import LockStateChanged
from piccolod.protocol.persistence import Check, GetCryptoStatus, List, Repair
from services.persistence.catch_up import on_the_wire
from services.persistence.entry import EntryHeader, seal_entry
from services.persistence.lock_commands import DEPOSIT
from services.persistence.secret import SecretKey
from services.persistence.state import put
from services.persistence.verify import survey

from .house import until
from .town import PASSWORD, Town, in_town


def spoil(db: Path) -> None:
    """In place, as bad blocks are."""
    with open(db, "r+b") as file:
        content = file.read()
        begin = len(content) // 2
        file.seek(begin)
        file.write(bytes(byte ^ 0xFF for byte in content[begin:]))


@in_town
async def test_a_damaged_copy_is_set_aside_at_the_start_made_whole_from_the_cluster_and_reported(town: Town) -> None:
    n1 = await town.found(writes=40)
    n2 = await town.join("n2")
    await n1.until_leads()
    await n2.catches_up(41)
    await n2.end()
    spoil(n2.paths.control_db)
    damaged = n2.paths.control_db.read_bytes()
    await n2.begin()
    await n2.catches_up(41)
    assert await n2.get("old39") == 39
    (aside,) = n2.paths.store.glob("control.db.corrupt-*Z")
    assert aside.read_bytes() == damaged
    assert survey(n2.paths.control_db, town.cluster, whole=False).ok
    await until(lambda: n2.module.healths[-1] == (Level.WARN, n2.module.healths[-1][1]), "health reports it")
    assert aside.name in n2.module.healths[-1][1]


@in_town
async def test_a_copy_that_is_gone_is_fetched_whole(town: Town) -> None:
    n1 = await town.found(writes=10)
    n2 = await town.join("n2")
    await n1.until_leads()
    await n2.catches_up(11)
    await n2.end()
    for file in n2.paths.store.glob("control.*"):
        file.unlink()
    await n2.begin()
    await n2.catches_up(11)
    assert await n2.get("old9") == 9


@in_town
async def test_the_key_that_a_node_had_alone_opens_nothing_of_the_cluster_that_it_joined(town: Town) -> None:
    """The supervisor keeps it over the restart of this module that ends a join."""
    n1 = await town.found(writes=10)
    n2 = town.node("n2")
    n2.deposits[DEPOSIT] = SecretKey.random().raw()
    town.enter(n2)
    await n2.begin()
    assert (await n2.ask(GetCryptoStatus())).locked
    await until(lambda: not n2.deposits, "the supervisor is told to forget it")
    await n1.until_leads()
    await n2.catches_up(11)
    await n2.unlock()
    assert await n2.get("old9") == 9


@in_town
async def test_what_a_power_loss_took_from_the_end_of_a_copy_is_no_damage(town: Town) -> None:
    n1 = await town.found(writes=10)
    await n1.end()
    for file in n1.paths.store.glob("control.db*"):
        file.unlink()  # all of it, and the mark of the life alone says that there were eleven
    assert n1.paths.control_db.with_suffix(".head").exists()
    await n1.begin()
    await n1.catches_up(11)
    assert await n1.get("old9") == 9
    assert not list(n1.paths.store.glob("*.corrupt-*"))


@in_town
async def test_damage_under_a_running_member_is_made_good_and_stops_nothing(town: Town) -> None:
    n1 = await town.found(writes=10)
    await n1.until_leads()
    await n1.put("a", 1)
    copy = n1.service._vault.catch_up.copy  # type: ignore[attr-defined]
    await copy.append(())
    copy._log.settle()
    spoil(n1.paths.control_db)
    assert not (await n1.ask(Check())).ok
    assert (await n1.ask(Check())).ok, "it is made good at once"
    report = await n1.ask(Repair())
    assert report.ok and report.set_aside, "where it went"
    assert await n1.get("old9") == 9
    assert await n1.put("a", 2) == 13
    await n1.again()
    assert await n1.get("a") == 2
    assert n1.rev == 13


@in_town
async def test_a_sealed_entry_of_a_stranger_that_was_filed_while_locked_is_cut_off_by_the_unlock(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.locked_follower()
    await n1.until_leads()
    header = EntryHeader(town.cluster, 2**62, 5, 1, town.etcd.head_digest, "x", 1, "")
    forged = on_the_wire(seal_entry(SecretKey.random().cipher, header, [put("settings", "x", {"v": 1})]))
    head = town.etcd.head_rev, town.etcd.head_digest
    town.etcd.log[5], town.etcd.head_rev, town.etcd.head_digest = forged, 5, forged.digest
    await n2.catches_up(5)
    del town.etcd.log[5]
    town.etcd.head_rev, town.etcd.head_digest = head
    await n2.unlock()
    assert n2.rev == 4
    assert (await n2.ask(List(collection="settings"))).rev == 4
    assert await n1.put("a", 1) == 5
    await n2.catches_up(5)
    assert await n2.get("a") == 1


@in_town
async def test_a_copy_of_another_history_is_named_and_begun_anew_by_a_repair(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    await n1.until_leads()
    await n2.catches_up(await n1.put("a", "lost"))
    # etcd goes on from rev 4 as if rev 5 had never been
    await n1.end()
    del town.etcd.log[5]
    town.etcd.head_rev, town.etcd.head_digest = 4, town.etcd.log[4].digest
    for file in n1.paths.store.glob("control.*"):
        file.unlink()
    await n1.begin()
    await n1.until_leads()
    assert await n1.put("b", "kept") == 5
    assert await n1.put("b", "kept on") == 6
    await until(lambda: n2.module.healths[-1][0] is Level.WARN, "it is named")
    assert await n2.get("a") == "lost", "nothing is undone by itself"
    await n2.ask(Repair())
    await n2.catches_up(6)
    assert await n2.get("b") == "kept on"
    assert list(n2.paths.store.glob("control.db.corrupt-*"))


@in_town
async def test_a_copy_that_is_ahead_of_the_cluster_is_set_aside_by_a_repair_which_says_what_is_lost(town: Town) -> None:
    """As of a node whose persistence took itself for alone, or of a cluster that came back from an older disk."""
    n1 = await town.found()
    n2 = await town.join("n2")
    await n1.until_leads()
    await n1.put("a", "kept")
    await n2.catches_up(await n1.put("a", "lost"))
    await n1.end()
    before = town.etcd.head_rev
    del town.etcd.log[before]
    town.etcd.head_rev, town.etcd.head_digest = before - 1, town.etcd.log[before - 1].digest
    await until(lambda: n2.module.healths[-1][0] is Level.WARN, "it is named")
    report = await n2.ask(Repair())
    assert (report.ok, report.lost_revs) == (True, 1) and "control.db.corrupt-" in report.set_aside
    await n2.catches_up(before - 1)
    assert await n2.get("a") == "kept"


@in_town
async def test_a_repair_gives_no_copy_up_for_a_cluster_whose_log_is_empty(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    await n1.until_leads()
    await n2.catches_up(await n1.put("a", "kept"))
    await n1.end()
    town.etcd.log.clear()
    town.etcd.head_rev, town.etcd.head_digest = 0, b""
    await until(lambda: n2.module.healths[-1][0] is Level.WARN, "it is named")
    report = await n2.ask(Repair())
    assert not report.set_aside and await n2.get("a") == "kept"


@in_town
async def test_the_lock_is_told_to_others_on_every_node(town: Town) -> None:
    await town.found()
    n2 = await town.locked_follower()
    assert n2.events(LockStateChanged)[-1].locked
    await n2.unlock(PASSWORD)
    assert not n2.events(LockStateChanged)[-1].locked

"""persistence as a member of a cluster: founding, joining, following, leading, the lock, and what a bad disk does to it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from piccolod import clock
from piccolod.errors import Conflict, DeadlineExceeded, Locked, NotLeader, OutcomeUnknown, PiccoloError, StoreUnavailable
from piccolod.protocol.base import Level
from piccolod.protocol.events import LockStateChanged
from piccolod.protocol.log import Append, Drain, Drained, ExportLog, GetHead
from piccolod.protocol.persistence import Check, GetCryptoStatus, GetLog, List, Lock, Repair
from services.persistence import etcd_snapshot
from services.persistence.member import POLL_S
from services.persistence.verify import survey

from .house import until
from .town import PASSWORD, Node, Town, in_town


async def catches_up(node: Node, rev: int, within_s: float = 10.0) -> None:
    await until(lambda: node.rev == rev, f"{node.name} has rev {rev}", within_s)


async def leads(node: Node) -> None:
    await until(lambda: node.leads, f"{node.name} leads")


# --- founding and joining


@in_town
async def test_a_node_alone_becomes_the_first_member_with_the_very_log_that_it_had(town: Town) -> None:
    n1 = await town.found()
    before = (await n1.ask(GetLog())).entries
    await leads(n1)
    assert [entry.rev for entry in before] == [1, 2, 3, 4]
    assert await n1.get("old2") == 2
    assert await n1.put("new", 1) == 5
    assert town.etcd.head_rev == 5
    assert town.etcd.log[5].digest.hex() == (await n1.revision()).digest
    with pytest.raises(Conflict):
        await n1.ask(ExportLog(after=0), caller="consensus")


@in_town
async def test_a_joiner_takes_the_keyset_files_the_sealed_log_and_opens_with_the_same_password(town: Town) -> None:
    await town.found()
    n2 = await town.join("n2", unlocked=False)
    await catches_up(n2, 4)
    status = await n2.ask(GetCryptoStatus())
    assert (status.initialized, status.locked, status.cluster_id) == (True, True, town.cluster)
    assert n2.shown() == [], "a locked node shows nothing"
    await n2.unlock()
    assert n2.shown()[-1] == 4
    assert await n2.get("old1") == 1
    with pytest.raises(NotLeader) as caught:
        await n2.put("a", 1)
    assert caught.value.leader is not None
    assert (caught.value.leader.node, caught.value.leader.url) == ("n1", "https://n1.test")


@in_town
async def test_a_joiner_waits_for_the_keyset_and_says_so(town: Town) -> None:
    await town.found()
    town.etcd.down = True
    n2 = await town.join("n2", unlocked=False)
    with pytest.raises(StoreUnavailable):
        await n2.unlock()
    assert "has not come yet" in (await n2.ask(GetCryptoStatus())).reason
    town.etcd.down = False
    await catches_up(n2, 4)
    await n2.unlock()
    assert await n2.get("old1") == 1


@in_town
async def test_an_unlock_waits_for_no_etcd_that_hangs(town: Town) -> None:
    await town.found()
    n2 = await town.join("n2", unlocked=False)
    await catches_up(n2, 4)
    ask = n2.consensus.ask

    async def hangs(request: object, *, timeout_s: float) -> object:
        await asyncio.sleep(timeout_s)
        raise DeadlineExceeded("no answer")

    n2.consensus.ask = hangs  # type: ignore[method-assign]
    await asyncio.wait_for(n2.unlock(), 8.0)
    assert await n2.get("old1") == 1, "it reads what it has"
    n2.consensus.ask = ask  # type: ignore[method-assign]


# --- following


@in_town
async def test_a_commit_of_the_leader_is_shown_by_a_follower_on_the_hint(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    await leads(n1)
    looked = len([asked for asked in n2.consensus.asked if type(asked).__name__ == "GetHead"])
    began = clock.now()
    for number in range(20):
        await catches_up(n2, await n1.put("a", number))
    took_s = clock.now() - began
    assert n2.shown()[-20:] == list(range(5, 25))
    assert await n2.get("a") == 19
    polls = len([asked for asked in n2.consensus.asked if type(asked).__name__ == "GetHead"]) - looked
    assert polls <= took_s / POLL_S + 2, "a hint asks for entries, not for the head first"
    assert took_s < 20 * POLL_S, "and nobody waited for the poll"


@in_town
async def test_a_hint_that_is_lost_is_made_up_for_by_the_poll(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    await leads(n1)
    n2.hears_hints = False
    await catches_up(n2, await n1.put("a", 1), POLL_S + 1.0)


@in_town
async def test_a_hint_for_what_never_comes_does_nothing(town: Town) -> None:
    from piccolod.protocol.events import ControlRevChanged

    n1 = await town.found()
    n2 = await town.join("n2")
    await leads(n1)
    shown = n2.shown()
    n2.hear(ControlRevChanged(rev=1_000_000))
    await asyncio.sleep(0.1)
    assert n2.shown() == shown
    assert n2.module.healths[-1][0] is Level.OK
    await catches_up(n2, await n1.put("a", 1))


@in_town
async def test_what_a_follower_does_not_believe_is_named_in_its_health_until_it_is_made_good(town: Town) -> None:
    from .etcd_double import flipped

    n1 = await town.found()
    n2 = await town.join("n2")
    await leads(n1)
    n2.hears_hints = False
    rev = await n1.put("a", 1)
    good = town.etcd.log[rev]
    town.etcd.log[rev] = flipped(good)
    await until(lambda: n2.module.healths[-1][0] is Level.WARN, "health names it")
    assert str(rev) in n2.module.healths[-1][1]
    assert n2.rev == rev - 1
    assert await n2.get("old1") == 1
    town.etcd.log[rev] = good
    await catches_up(n2, rev)
    await until(lambda: n2.module.healths[-1][0] is Level.OK, "health is well again")


# --- leading


@in_town
async def test_a_locked_leader_drains_gives_the_kernel_up_and_another_member_takes_it(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    await leads(n1)
    writing = [asyncio.ensure_future(n1.put(f"w{number}", number)) for number in range(20)]
    await asyncio.sleep(0)
    await n1.ask(Lock())
    assert sorted(await asyncio.gather(*writing)) == list(range(5, 25)), "what was under way is made"
    assert n1.withdrawn == ["locked"]
    await leads(n2)
    assert await n2.put("a", 1) == 25
    assert await n2.get("w19") == 19
    with pytest.raises(Locked):
        await n1.put("a", 2)
    drained: Drained = await n1.ask(Drain(), caller="consensus")
    await catches_up(n1, 25)
    assert drained.rev in (24, 25)


@in_town
async def test_who_is_behind_does_not_campaign(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    await leads(n1)
    n2.hears_hints = False
    n2.consensus.spoil = lambda page: type(page)(entries=(), first_rev=page.first_rev)
    await n1.put("a", 1)
    await until(lambda: n2.module.healths[-1][0] is Level.WARN, "it does not follow")
    n1.campaigns = False
    town.etcd.release()
    n1.deposed()
    town.tell_roles()
    asked = len(n2.consensus.asked)
    await until(lambda: len(n2.consensus.asked) > asked + 6, "it looked several times")
    assert not n2.leads
    n2.consensus.spoil = lambda page: page
    await leads(n2)
    assert await n2.put("b", 1) == 6


@in_town
async def test_an_etcd_that_does_not_answer_for_a_moment_costs_no_term(town: Town) -> None:
    n1 = await town.found()
    await leads(n1)
    await n1.put("a", 1)
    town.etcd.down = True
    with pytest.raises(StoreUnavailable):
        await n1.put("a", 2)
    await looks(n1, 2)
    town.etcd.down = False
    assert n1.leads and n1.withdrawn == []
    assert await n1.put("a", 3) == 6


@in_town
async def test_a_restarted_module_goes_on_in_its_term_and_fetches_what_it_did_not_file(town: Town) -> None:
    n1 = await town.found()
    await leads(n1)
    await n1.put("a", 1)
    catch_up = n1.service._vault.catch_up  # type: ignore[attr-defined]
    catch_up.copy.submit = lambda items: None  # it dies before the file has it
    await n1.put("a", 2)
    await n1.again()
    token = town.etcd.token
    assert await n1.put("a", 3) == 7
    assert town.etcd.token == token
    assert await n1.get("a") == 3


@in_town
async def test_a_drain_of_a_locked_or_a_starting_node_is_done_at_once(town: Town) -> None:
    await town.found()
    n2 = await town.join("n2", unlocked=False)
    await catches_up(n2, 4)
    drained: Drained = await n2.ask(Drain(), caller="consensus")
    assert (drained.rev, drained.digest) == (4, town.etcd.head_digest)
    n2.service._vault.opened.clear()
    await asyncio.wait_for(n2.ask(Drain(), caller="consensus"), 0.5)
    n2.service._vault.opened.set()


@in_town
async def test_an_unknown_write_that_comes_late_is_shown_by_the_leader_without_another_write(town: Town) -> None:
    n1 = await town.found()
    n1.consensus.unknown.append("late, cut off")
    writing = asyncio.ensure_future(n1.put("a", 1, idem="k"))
    with pytest.raises(OutcomeUnknown):
        await writing
    n1.consensus.cut_off = False
    await looks(n1, 1)  # at a head that does not show it, which proves nothing
    n1.consensus.arrive()
    await catches_up(n1, 5, 2.0)
    assert await n1.get("a") == 1
    assert await n1.put("a", 1, idem="k") == 5


# --- snapshots


@in_town
async def test_the_leader_puts_a_snapshot_into_etcd_when_it_is_due_and_a_joiner_takes_it(town: Town) -> None:
    n1 = await town.found()
    await leads(n1)
    for number in range(etcd_snapshot.REVS // 50):
        await asyncio.gather(*(n1.put(f"a{at}", number) for at in range(50)))
    await until(lambda: town.etcd.snapshot[0] >= etcd_snapshot.REVS, "the snapshot is there")
    assert min(town.etcd.log, default=town.etcd.head_rev + 1) == town.etcd.snapshot[0] + 1, "the log is trimmed"
    n2 = await town.join("n2")
    await catches_up(n2, town.etcd.head_rev)
    assert await n2.get("a49") == etcd_snapshot.REVS // 50 - 1


@in_town
async def test_the_log_in_etcd_is_bounded_in_bytes_too(town: Town) -> None:
    n1 = await town.found()
    await leads(n1)
    for number in range(40):
        await n1.put("large", str(number) * 150_000)
    await until(lambda: town.etcd.snapshot[0] > 4, "the snapshot is there")


@in_town
async def test_a_full_etcd_gets_a_snapshot_that_makes_room_though_none_is_due(town: Town) -> None:
    n1 = await town.found()
    await leads(n1)
    await n1.put("a", 1)
    town.etcd.full = True
    from piccolod.errors import StoreFull

    with pytest.raises(StoreFull):
        await n1.put("a", 2)
    await until(lambda: town.etcd.snapshot[0] == 5, "what is there is trimmed")
    town.etcd.full = False
    assert await n1.put("a", 2) == 6


# --- damage


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
    await leads(n1)
    await catches_up(n2, 41)
    await n2.end()
    spoil(n2.paths.control_db)
    damaged = n2.paths.control_db.read_bytes()
    await n2.begin()
    await catches_up(n2, 41)
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
    await leads(n1)
    await catches_up(n2, 11)
    await n2.end()
    for file in n2.paths.store.glob("control.*"):
        file.unlink()
    await n2.begin()
    await catches_up(n2, 11)
    assert await n2.get("old9") == 9


@in_town
async def test_what_a_power_loss_took_from_the_end_of_a_copy_is_no_damage(town: Town) -> None:
    n1 = await town.found(writes=10)
    await n1.end()
    for file in n1.paths.store.glob("control.db*"):
        file.unlink()  # all of it, and the mark of the life alone says that there were eleven
    assert n1.paths.control_db.with_suffix(".head").exists()
    await n1.begin()
    await catches_up(n1, 11)
    assert await n1.get("old9") == 9
    assert not list(n1.paths.store.glob("*.corrupt-*"))


@in_town
async def test_damage_under_a_running_member_is_made_good_and_stops_nothing(town: Town) -> None:
    n1 = await town.found(writes=10)
    await leads(n1)
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
    from services.persistence.catch_up import on_the_wire
    from services.persistence.entry import EntryHeader, seal_entry
    from services.persistence.secret import SecretKey
    from services.persistence.state import put

    n1 = await town.found()
    n2 = await town.join("n2", unlocked=False)
    await leads(n1)
    await catches_up(n2, 4)
    header = EntryHeader(town.cluster, 2**62, 5, 1, town.etcd.head_digest, "x", 1, "")
    forged = on_the_wire(seal_entry(SecretKey.random().cipher, header, [put("settings", "x", {"v": 1})]))
    head = town.etcd.head_rev, town.etcd.head_digest
    town.etcd.log[5], town.etcd.head_rev, town.etcd.head_digest = forged, 5, forged.digest
    await catches_up(n2, 5)
    del town.etcd.log[5]
    town.etcd.head_rev, town.etcd.head_digest = head
    await n2.unlock()
    assert n2.rev == 4
    assert (await n2.ask(List(collection="settings"))).rev == 4
    assert await n1.put("a", 1) == 5
    await catches_up(n2, 5)
    assert await n2.get("a") == 1


@in_town
async def test_a_copy_of_another_history_is_named_and_begun_anew_by_a_repair(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    await leads(n1)
    await catches_up(n2, await n1.put("a", "lost"))
    # etcd goes on from rev 4 as if rev 5 had never been
    await n1.end()
    del town.etcd.log[5]
    town.etcd.head_rev, town.etcd.head_digest = 4, town.etcd.log[4].digest
    for file in n1.paths.store.glob("control.*"):
        file.unlink()
    await n1.begin()
    await leads(n1)
    assert await n1.put("b", "kept") == 5
    assert await n1.put("b", "kept on") == 6
    await until(lambda: n2.module.healths[-1][0] is Level.WARN, "it is named")
    assert await n2.get("a") == "lost", "nothing is undone by itself"
    await n2.ask(Repair())
    await catches_up(n2, 6)
    assert await n2.get("b") == "kept on"
    assert list(n2.paths.store.glob("control.db.corrupt-*"))


@in_town
async def test_a_copy_that_is_ahead_of_the_cluster_is_set_aside_by_a_repair_which_says_what_is_lost(town: Town) -> None:
    """As of a node whose persistence took itself for alone, or of a cluster that came back from an older disk."""
    n1 = await town.found()
    n2 = await town.join("n2")
    await leads(n1)
    await n1.put("a", "kept")
    await catches_up(n2, await n1.put("a", "lost"))
    await n1.end()
    before = town.etcd.head_rev
    del town.etcd.log[before]
    town.etcd.head_rev, town.etcd.head_digest = before - 1, town.etcd.log[before - 1].digest
    await until(lambda: n2.module.healths[-1][0] is Level.WARN, "it is named")
    report = await n2.ask(Repair())
    assert (report.ok, report.lost_revs) == (True, 1) and "control.db.corrupt-" in report.set_aside
    await catches_up(n2, before - 1)
    assert await n2.get("a") == "kept"


@in_town
async def test_a_repair_gives_no_copy_up_for_a_cluster_whose_log_is_empty(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    await leads(n1)
    await catches_up(n2, await n1.put("a", "kept"))
    await n1.end()
    town.etcd.log.clear()
    town.etcd.head_rev, town.etcd.head_digest = 0, b""
    await until(lambda: n2.module.healths[-1][0] is Level.WARN, "it is named")
    report = await n2.ask(Repair())
    assert not report.set_aside and await n2.get("a") == "kept"


@in_town
async def test_the_lock_is_told_to_others_on_every_node(town: Town) -> None:
    await town.found()
    n2 = await town.join("n2", unlocked=False)
    await catches_up(n2, 4)
    assert n2.events(LockStateChanged)[-1].locked
    await n2.unlock(PASSWORD)
    assert not n2.events(LockStateChanged)[-1].locked


@in_town
async def test_writers_that_keep_coming_do_not_keep_a_node_whose_write_is_in_doubt_from_leading_again(town: Town) -> None:
    node = await town.found()
    await node.put("a", 1)
    real = node.consensus_does
    silent = stop = False

    async def does(request: Any, timeout_s: float) -> Any:
        if silent:
            raise OutcomeUnknown("lost") if isinstance(request, Append) else StoreUnavailable("etcd does not answer")
        return await real(request, timeout_s)

    async def write_on(number: int) -> None:
        value = 0
        while not stop:
            value += 1
            try:
                await node.put(f"w{number}", value)
            except PiccoloError:
                await asyncio.sleep(0.1)

    node.consensus_does = does  # type: ignore[method-assign]
    silent = True
    with pytest.raises(OutcomeUnknown):
        await node.put("z", 1)
    node.deposed()
    town.etcd.release()
    town.tell_roles()
    writers = []
    try:
        for number in range(3):
            writers.append(asyncio.ensure_future(write_on(number)))
            await asyncio.sleep(0.7)  # so that one of them is parked at each moment
        silent = False
        await until(lambda: node.leads, "it leads again while they write", 12)
    finally:
        stop = True
        await asyncio.gather(*writers)


async def looks(member: Node, times: int) -> None:
    """The upkeep has begun that many looks at the head, each after the one before it has ended."""

    def seen() -> int:
        return sum(isinstance(each, GetHead) for each in member.consensus.asked)

    before = seen()
    await until(lambda: seen() > before + times, f"{times} looks at the head", 10.0)

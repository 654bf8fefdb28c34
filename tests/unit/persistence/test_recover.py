"""What a member that is left has of the log, when nobody can be asked any more: told, added to by proof alone, moved whole."""

from __future__ import annotations

import msgspec
import pytest

from piccolod.errors import Conflict, Locked
from piccolod.protocol.log import ExportLog
from piccolod.protocol.persistence import ChangePassword, Lock
from piccolod.protocol.recovery import GetLogEnd, LogEnd, TakeEntries
from services.persistence.catch_up import as_sealed, verified
from services.persistence.chain import Chain

from .etcd_double import flipped
from .house import PASSWORD, until
from .town import Node, Town, in_town


async def left_behind(town: Town, count: int = 4) -> tuple[Node, Node]:
    """A follower that lacks the last `count` revs, when etcd loses its quorum; and who led."""
    n1 = await town.found()
    n2 = await town.join("n2")
    await n1.until_leads()
    await n2.catches_up(town.etcd.head_rev)
    n2.consensus.cut_off = True
    for number in range(count):
        await n1.put("late", number)
    town.etcd.down = True
    return n1, n2


async def end(node: Node) -> LogEnd:
    found: LogEnd = await node.ask(GetLogEnd(), caller="consensus")
    return found


@in_town
async def test_the_end_of_the_log_is_told_also_while_it_is_locked(town: Town) -> None:
    n1, n2 = await left_behind(town)
    told, ahead = await end(n2), await end(n1)
    assert (told.rev, told.locked) == (n2.rev, False) and told.at_ms > 0
    assert (ahead.rev, ahead.digest) == (town.etcd.head_rev, town.etcd.head_digest)
    assert (ahead.gen, ahead.epoch) >= (told.gen, told.epoch) > (0, 0)
    await n2.ask(Lock())
    assert await end(n2) == msgspec.structs.replace(told, locked=True)


@in_town
async def test_what_follows_and_proves_itself_is_taken_without_a_quorum(town: Town) -> None:
    _, n2 = await left_behind(town)
    rest = tuple(town.etcd.log[rev] for rev in range(n2.rev + 1, town.etcd.head_rev + 1))
    found = await n2.ask(TakeEntries(entries=rest), caller="consensus")
    assert (found.rev, found.digest) == (town.etcd.head_rev, town.etcd.head_digest)
    assert await n2.get("late") == 3 and n2.shown()[-1] == found.rev
    assert (await n2.ask(TakeEntries(entries=rest), caller="consensus")).rev == found.rev, "twice is once"
    await n2.again()
    await until(lambda: n2.rev == found.rev, "the disk has them")


@in_town
async def test_what_does_not_prove_itself_is_left_out(town: Town) -> None:
    _, n2 = await left_behind(town)
    before = n2.rev
    rest = [town.etcd.log[rev] for rev in range(before + 1, town.etcd.head_rev + 1)]
    assert (await n2.ask(TakeEntries(entries=tuple(rest[1:])), caller="consensus")).rev == before, "a gap"
    rest[1] = flipped(rest[1])
    assert (await n2.ask(TakeEntries(entries=tuple(rest)), caller="consensus")).rev == before + 1
    assert await n2.get("late") == 0
    await n2.ask(Lock())
    with pytest.raises(Locked):
        await n2.ask(TakeEntries(entries=tuple(rest)), caller="consensus")


@in_town
async def test_a_password_that_was_changed_while_it_was_cut_off_is_taken_from_the_keyset(town: Town) -> None:
    n1, n2 = await left_behind(town)
    town.etcd.down = False
    await n1.ask(ChangePassword(old=PASSWORD, new="another password of tests", source="test"))
    town.etcd.down = True
    await n2.ask(TakeEntries(keyset=b"no keyset at all"), caller="consensus")
    await n2.ask(TakeEntries(keyset=town.etcd.keyset), caller="consensus")
    await n2.ask(Lock())
    await n2.unlock("another password of tests")


@in_town
async def test_the_log_of_a_member_is_exported_for_a_recovery_alone(town: Town) -> None:
    n1, n2 = await left_behind(town)
    with pytest.raises(Conflict, match="member of a cluster already"):
        await n1.ask(ExportLog(after=0), caller="consensus")
    for node in (n1, n2):
        found = await node.ask(ExportLog(after=0, recovers=True), caller="consensus")
        chain = Chain(town.cluster)
        items, broken = verified(chain, None, [as_sealed(entry) for entry in found.entries])
        assert broken is None and (chain.rev, chain.digest) == (found.head_rev, found.head_digest)
        assert found.head_rev == node.rev == len(items) and found.keyset
    alone = town.node("n3")
    await alone.begin()
    with pytest.raises(Conflict, match="alone"):
        await alone.ask(ExportLog(after=0, recovers=True), caller="consensus")
    with pytest.raises(Conflict, match="alone"):
        await alone.ask(TakeEntries(), caller="consensus")

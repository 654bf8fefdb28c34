"""A watch beside a writer of another client: no revision lost, doubled or out of order, whatever happens to the members."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from piccolod.errors import StoreRestored
from services.consensus.etcd.client import Client
from services.consensus.etcd.header import Lineage
from services.consensus.etcd.status import compact
from services.consensus.etcd.transaction import Delete, Put, Transaction
from services.consensus.etcd.watch import Relist, Revision, Watch
from tests.etcd import Cluster
from tests.unit.consensus.etcd.conftest import SILENCE_S, Follower, Writer, eventually, opened, run

Fault = Callable[[Cluster], Awaitable[None]]


async def through(etcd: Cluster, prefix: str, first: int, fault: Fault) -> Follower:
    """Watches member `first` while another client writes and the fault happens; checks all that was seen."""
    async with opened(etcd, first) as ours, opened(etcd, (first + 1) % 3) as theirs:
        _, revision = await ours.list(prefix, 5)
        follower = Follower(Watch(ours, prefix, revision, SILENCE_S))
        writer = Writer(theirs, prefix)
        try:
            await eventually(lambda: len(follower.seen) > 10, "the watch runs")
            assert follower.watch.endpoint == etcd.endpoints[first]
            await fault(etcd)
            await asyncio.to_thread(etcd.revive)
            written = writer.written
            await eventually(lambda: writer.written > written + 20, "the writer goes on")
        finally:
            truth = await writer.stop()
        await follower.until_revision(truth[-1].mod_revision)
        await follower.stop()
        assert [each.revision for each in follower.seen] == [each.mod_revision for each in truth]
        assert [each.events[0].item.key for each in follower.seen] == [each.key for each in truth]
        assert writer.written <= len(truth)
        assert not follower.relists
        return follower


def follower_of(etcd: Cluster) -> int:
    leader = etcd.leader()
    return next(index for index, each in enumerate(etcd.members) if each is not leader)


def test_the_watched_member_is_killed(etcd, prefix):
    first = follower_of(etcd)

    async def fault(etcd: Cluster) -> None:
        etcd.members[first].kill()
        await asyncio.sleep(0.5)  # how long the fault lasts

    assert asyncio.run(through(etcd, prefix, first, fault)).watch.resumed >= 1


def test_the_watched_member_is_frozen_and_comes_back(etcd, prefix):
    first = follower_of(etcd)

    async def fault(etcd: Cluster) -> None:
        etcd.members[first].freeze()
        await asyncio.sleep(SILENCE_S + 0.5)
        etcd.members[first].thaw()

    follower = asyncio.run(through(etcd, prefix, first, fault))
    assert follower.watch.reason == "silent"


@pytest.mark.parametrize("fault_name", ["kill", "freeze"])
def test_the_leader_is_lost_while_it_is_watched(etcd, prefix, fault_name):
    leader = etcd.leader()

    async def fault(etcd: Cluster) -> None:
        getattr(leader, fault_name)()
        await asyncio.sleep(1.5)

    asyncio.run(through(etcd, prefix, etcd.members.index(leader), fault))


def test_the_quorum_is_lost_and_comes_back(etcd, prefix):
    async def fault(etcd: Cluster) -> None:
        for member in etcd.members[:2]:
            member.freeze()
        await asyncio.sleep(2.0)
        for member in etcd.members[:2]:
            member.thaw()

    asyncio.run(through(etcd, prefix, 2, fault))


def test_every_member_is_killed_one_after_the_other(etcd, prefix):
    async def fault(etcd: Cluster) -> None:
        for member in etcd.members:
            member.kill()
            await asyncio.sleep(0.3)
            member.start()
            await asyncio.to_thread(etcd.wait_up)

    assert asyncio.run(through(etcd, prefix, 0, fault)).watch.resumed >= 1


def test_a_revision_comes_whole_with_all_of_its_events(etcd, prefix):
    async def test(client: Client) -> None:
        await client.transact(Transaction((), (Put(f"{prefix}old", b"1"),)))
        _, revision = await client.list(prefix, 5)
        follower = Follower(Watch(client, prefix, revision, 5))
        puts = tuple(Put(f"{prefix}{number:03}", bytes(10_000)) for number in range(100))
        made = await client.transact(Transaction((), (*puts, Delete(f"{prefix}old"))), 5)
        await follower.until_revision(made.revision)
        await follower.stop()
        (seen,) = follower.seen
        assert len(seen.events) == 101
        assert [each.item.key for each in seen.events if each.deleted] == [f"{prefix}old"]
        assert {each.item.mod_revision for each in seen.events} == {made.revision}

    run(test, etcd)


def test_a_watch_from_the_past_tells_it_from_there_on(etcd, prefix):
    async def test(client: Client) -> None:
        revisions: list[int] = []
        for batch in range(0, 1500, 50):
            puts = (Transaction((), (Put(f"{prefix}{n % 7}", b"%d" % n),)) for n in range(batch, batch + 50))
            made = await asyncio.gather(*(client.transact(each, 5) for each in puts))
            revisions += sorted(each.revision for each in made)
        follower = Follower(Watch(client, prefix, revisions[99], 5))
        await follower.until_revision(revisions[-1])
        await follower.stop()
        assert [each.revision for each in follower.seen] == revisions[100:]

    run(test, etcd)


def test_what_was_compacted_away_asks_for_a_new_listing(etcd, prefix):
    async def test(client: Client) -> None:
        old = (await client.transact(Transaction((), (Put(f"{prefix}a", b"1"),)))).revision
        for _ in range(3):
            new = (await client.transact(Transaction((), (Put(f"{prefix}a", b"2"),)))).revision
        await compact(client, new, 5)
        news = [each async for each in Watch(client, prefix, old, 5).news()]
        assert [type(each) for each in news] == [Relist]
        assert f"compacted up to revision {new}" in news[0].reason

        keys, revision = await client.list(prefix, 5)
        assert keys[0].value == b"2"
        follower = Follower(Watch(client, prefix, revision, 5))
        last = (await client.transact(Transaction((), (Put(f"{prefix}a", b"3"),)))).revision
        await follower.until_revision(last)
        await follower.stop()
        assert [each.revision for each in follower.seen] == [last]

    run(test, etcd)


def test_silence_leads_to_the_next_endpoint_and_loses_nothing(etcd, prefix):
    async def test(client: Client) -> None:
        _, revision = await client.list(prefix, 5)
        follower = Follower(Watch(client, prefix, revision, 0.2))
        await eventually(lambda: follower.watch.resumed >= 3, "it has gone round")
        made = await client.transact(Transaction((), (Put(f"{prefix}a", b"1"),)))
        await follower.until_revision(made.revision)
        await follower.stop()
        assert [each.revision for each in follower.seen] == [made.revision]

    run(test, etcd)


def test_a_slow_taker_is_not_mistaken_for_a_silent_etcd(etcd, prefix):
    async def test(client: Client) -> None:
        _, revision = await client.list(prefix, 5)
        watch = Watch(client, prefix, revision, 0.3)
        for n in range(20):
            await client.transact(Transaction((), (Put(f"{prefix}{n}", b"1"),)))
        seen: list[Revision] = []
        async for news in watch.news():
            assert isinstance(news, Revision)
            seen.append(news)
            if len(seen) == 1:
                await asyncio.sleep(0.6)  # slower than etcd may be silent
            if len(seen) == 20:
                break
        assert watch.resumed == 0

    run(test, etcd)


def test_another_etcd_behind_an_endpoint_ends_the_watch(etcd, prefix):
    async def test() -> None:
        async with opened(etcd, lineage=Lineage(cluster_id=1, revision=1)) as client:
            with pytest.raises(StoreRestored):
                async for _ in Watch(client, prefix, 0, 1).news():
                    pass

    asyncio.run(test())

"""Status, alarms by name, upkeep, copies, and what a restored copy looks like to a client."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from piccolod.errors import StoreFull, StoreRestored, StoreUnavailable
from services.consensus.etcd import status
from services.consensus.etcd.client import Client
from services.consensus.etcd.failures import TransactionUnknown
from services.consensus.etcd.header import Lineage
from services.consensus.etcd.transaction import Put, Range, Transaction, absent
from tests.etcd import ETCDCTL, Cluster, Member
from tests.unit.consensus.etcd.conftest import opened, run


def test_a_member_tells_how_it_is(etcd):
    async def test(client: Client) -> None:
        told = [await status.status(client, each) for each in etcd.endpoints]
        assert [each.leads for each in told].count(True) == 1
        assert len({each.leader_id for each in told}) == 1
        assert {each.version for each in told} == {told[0].version}
        assert told[0].version.startswith("3.")
        for each in told:
            assert 0 < each.used_bytes <= each.db_bytes
            assert not each.learner
        assert await status.alarms(client, 2) == ()

    run(test, etcd)


def test_a_member_that_sees_no_leader_tells_so(etcd):
    async def test(client: Client) -> None:
        for member in etcd.members[1:]:
            member.freeze()
        while (await status.status(client, etcd.endpoints[0])).leader_id:
            await asyncio.sleep(0.05)

    run(test, etcd)


def test_a_frozen_or_absent_member_does_not_answer_in_another_ones_place(etcd):
    async def test(client: Client) -> None:
        etcd.members[1].freeze()
        etcd.members[2].kill()
        for member in etcd.members[1:]:
            with pytest.raises(StoreUnavailable):
                await status.status(client, member.endpoint)
        assert (await status.status(client, etcd.endpoints[0])).version

    run(test, etcd)


def test_leadership_of_etcd_can_be_moved(etcd):
    async def test(client: Client) -> None:
        told = {each: await status.status(client, each) for each in etcd.endpoints}
        leader = next(each for each in told if told[each].leads)
        other = next(each for each in told if not told[each].leads)
        await status.move_leader(client, leader, told[other].header.member_id)
        assert (await status.status(client, other)).leads

    run(test, etcd)


def test_a_full_etcd_names_its_alarm_and_is_freed_by_compaction_defragmentation_and_disarming():
    async def fill(client: Client) -> list[str]:
        """Until it refuses; returns the keys of writes that were said to be refused."""
        unknown: list[str] = []

        async def put(key: str) -> None:
            try:
                await client.transact(Transaction((absent(key),), (Put(key, bytes(200_000)), Put("/hot", bytes(200_000)))), 5)
            except TransactionUnknown as error:
                assert isinstance(error.refusal, StoreFull)
                unknown.append(key)

        for batch in range(20):
            await asyncio.gather(*(put(f"/fill/{batch}/{n}") for n in range(16)))
            if unknown:
                return unknown
        raise AssertionError("it never was full")

    async def test(client: Client) -> None:
        unknown = await fill(client)
        assert [each.name for each in await status.alarms(client, 2)] == ["NOSPACE"]
        happened = [key for key in unknown if (await client.find(Range(key, keys_only=True), 2))[0].count]
        # etcd answers "space exceeded" also to a write that it did: why that answer is unknown and no refusal.
        assert happened
        with pytest.raises(TransactionUnknown):
            await client.transact(Transaction((absent("/late"),), (Put("/late", b""),)), 5)
        assert not (await client.find(Range("/late"), 2))[0].count

        await status.compact(client, (await client.list("/hot", 5))[1], 5)
        before = await status.status(client, client.endpoint())
        await status.defragment(client, client.endpoint(), 10)
        after = await status.status(client, client.endpoint())
        assert after.db_bytes < before.db_bytes
        for alarm in await status.alarms(client, 2):
            await status.disarm(client, alarm, 2)
        assert await status.alarms(client, 2) == ()
        await client.transact(Transaction((), (Put("/again", b""),)), 5)

    with Cluster(1, quota_bytes=24 << 20) as cluster:
        run(test, cluster)


def test_a_copy_is_whole_and_shows_as_restored_whether_its_cluster_id_is_new_or_the_old_one(tmp_path):
    async def put(client: Client, count: int) -> None:
        for n in range(count):
            await client.transact(Transaction((), (Put(f"/a{n}", b"1"),)))

    async def before(cluster: Cluster, copy: Path) -> Lineage:
        async with opened(cluster) as client:
            await put(client, 5)
            assert await status.save(client, cluster.endpoints[0], copy, 10) == copy.stat().st_size
            await put(client, 3)
            return client.lineage

    async def after(cluster: Cluster, lineage: Lineage, match: str) -> None:
        async with opened(cluster, lineage=lineage) as client:
            for _ in range(8):  # it grows past what was seen, and is still not believed
                with pytest.raises(StoreRestored, match=match):
                    await client.transact(Transaction((), (Put("/b", b"1"),)))
        async with opened(cluster) as client:
            assert [each.key for each in (await client.list("/a", 2))[0]] == [f"/a{n}" for n in range(5)]

    copy = tmp_path / "copy"
    with Cluster(1) as cluster:
        (member,) = cluster.members
        lineage = asyncio.run(before(cluster, copy))
        assert [each.name for each in tmp_path.iterdir()] == ["copy"]
        for token, match in ((member.settings.token, "had shown"), ("another", "cluster id")):
            member.kill()
            restore(member, copy, token)
            member.start()
            cluster.wait_up()
            asyncio.run(after(cluster, Lineage(lineage.cluster_id, lineage.revision), match))


def restore(member: Member, copy: Path, token: str) -> None:
    shutil.rmtree(member.paths.etcd_data)
    settings = member.settings
    subprocess.run(
        [ETCDCTL, "snapshot", "restore", copy, f"--data-dir={member.paths.etcd_data}", f"--name={settings.name}",
         f"--initial-cluster={settings.name}={settings.peer_url}", f"--initial-advertise-peer-urls={settings.peer_url}",
         f"--initial-cluster-token={token}"],
        env={"PATH": "/usr/bin:/bin", "ETCDCTL_API": "3"}, check=True, capture_output=True,
    )  # fmt: skip

"""The first records of a cluster: the terms of a node alone go on in etcd under their tokens, and nothing stops for it."""

from __future__ import annotations

import asyncio

import pytest

from piccolod.cluster_mode import Mode, enter
from piccolod.errors import Conflict
from piccolod.leadership.timing import FAST
from piccolod.protocol.consensus import Campaign
from piccolod.protocol.log import GetEntries, GetHead, GetKeyset, GetSnapshot, GetSnapshotChunk
from services.consensus import seed
from services.consensus.memory import MemoryFile
from services.consensus.static_leaser import StaticLeaser
from tests.etcd import Cluster
from tests.unit.consensus.etcd.conftest import eventually, opened, put_keyset
from tests.unit.consensus.etcd.member import GEN, House, Node, house, living
from tests.unit.consensus.etcd.test_control_log import append, entry


def test_the_terms_of_a_node_alone_are_resumed_in_etcd_under_the_same_tokens() -> None:
    async def main(home: House, etcd: Cluster) -> None:
        node = Node(home.folder / "n1", 0)
        record = node.make(home.cluster, etcd)
        mode = node.paths.cluster / "mode"
        mode.unlink()
        async with living(node) as alone:
            assert isinstance(alone.service._leaser, StaticLeaser)
            kernel = await alone.lead()
            blog, wiki = await alone.lead("app:blog"), await alone.lead("app:wiki")
            page, records = node.page(), tuple(alone.service._leaser.records().values())
        async with opened(etcd) as client:
            await seed.put_gen(client, home.prefix, page.gen)
            await seed.put_node(client, home.prefix, "n1", record)
            await seed.put_terms(client, home.prefix, "n1", "10.77.0.1", page, records, FAST)
            MemoryFile(node.paths.cluster / "seen.json").write(await seed.memory_of(client, home.prefix, page.gen))
        enter(node.paths.cluster, Mode(cluster=home.cluster, node="n1", since_ms=1))
        tokens = {name: term.token for name, term in page.terms.items()}
        async with living(node) as live:
            await eventually(lambda: live.leaser.driver.state.viewed, "it has read etcd")
            await eventually(lambda: live.leaser.driver.state.session.seq > 1, "it beats in etcd")
            assert {name: term.token for name, term in node.page().terms.items()} == tokens
            assert (await live.ask(GetHead())).token == kernel.token
            await append(live, kernel, entry(1))
            for app in (blog, wiki):
                assert await live.ask(Campaign(resource=app.resource), "apps") == app
        with pytest.raises(Conflict):
            async with opened(etcd) as client:
                await seed.put_terms(client, home.prefix, "n1", "10.77.0.1", page, records, FAST)

    with Cluster(1, heartbeat_ms=50, election_ms=400) as etcd, house(etcd) as home:
        asyncio.run(main(home, etcd))


def test_a_moved_log_is_read_and_appended_to_by_the_first_leader(etcd: Cluster) -> None:
    async def main(home: House) -> None:
        (node,) = await home.begin(1)
        entries = [entry(rev) for rev in range(11, 31)]
        async with opened(home.etcd) as client:
            for index, chunk in enumerate((b"part one", b"part two")):
                await seed.put_chunk(client, home.prefix, 10, index, chunk)
            await seed.put_snapshot_record(client, home.prefix, 10, chunks=2, size_bytes=16)
            await seed.put_log(client, home.prefix, GEN, entries)
            await put_keyset(client, home.prefix, b"keyset")
        async with living(node) as live:
            term = await live.lead()
            head = await live.ask(GetHead())
            assert (head.rev, head.digest) == (30, entries[-1].digest)
            assert list((await live.ask(GetEntries(after=0))).entries) == entries
            assert (await live.ask(GetSnapshot())).size_bytes == 16
            assert (await live.ask(GetSnapshotChunk(rev=10, index=1))).data == b"part two"
            assert (await live.ask(GetKeyset())).keyset == b"keyset"
            await append(live, term, entry(31), after=entries[-1].digest)
            assert (await live.ask(GetHead())).rev == 31

    with house(etcd) as home:
        asyncio.run(main(home))


def test_a_cluster_is_begun_once(etcd: Cluster) -> None:
    async def main(home: House) -> None:
        await home.begin(1)
        async with opened(home.etcd) as client:
            with pytest.raises(Conflict):
                await seed.put_gen(client, home.prefix, GEN + 1)

    with house(etcd) as home:
        asyncio.run(main(home))

"""A cluster grows by learners: 1, then 1 and a learner, then 2; and shrinks."""

from __future__ import annotations

import asyncio
import time

import pytest

from piccolod.errors import Busy, StoreUnavailable
from services.consensus.etcd import members
from services.consensus.etcd.client import Client
from services.consensus.etcd.failures import Verdict, judge
from services.consensus.etcd.status import status
from services.consensus.etcd.transaction import Put, Transaction
from tests.etcd import Cluster, Member
from tests.unit.consensus.etcd.conftest import opened, patiently, run


async def joined(client: Client, cluster: Cluster, name: str) -> tuple[Member, members.Member]:
    """Added as a learner, as soon as one more is taken, and started."""
    known = {each.name: each.peer_urls[0] for each in await members.members(client, 2)}
    new = cluster.add(name, state="existing")
    added = await until_done(lambda: members.add_learner(client, (new.settings.peer_url,), 2))
    assert added.learner
    new.settings = cluster.settings(new, {**known, name: new.settings.peer_url})
    await client.transact(Transaction((), (Put("/while/it/is/absent", b""),)))  # a voter would have stopped this
    new.start()
    return new, added


async def until_done(act):
    give_up_at = time.monotonic() + 10
    while True:
        try:
            return await act()
        except (Busy, StoreUnavailable):
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.05)


def test_a_cluster_of_one_becomes_two_and_one_again_and_never_stops_writing():
    async def test(client: Client) -> None:
        await client.transact(Transaction((), (Put("/a", b"1"),)))
        second, learner = await joined(client, cluster, "second")
        with pytest.raises(Busy):  # 3.4 takes one learner at a time
            await members.add_learner(client, ("http://127.0.0.1:1",), 2)
        await asyncio.to_thread(cluster.wait_serving, second)
        assert (await status(client, second.endpoint)).learner
        async with opened(cluster, 1) as through_learner:  # it refuses, and the voter answers
            assert len((await through_learner.list("/", 2))[0]) == 2
            assert through_learner.endpoint() == cluster.endpoints[0]

        await until_done(lambda: members.promote(client, learner.id, 2))
        found = await members.members(client, 2)
        assert {each.name: each.learner for each in found} == {"m0": False, "second": False}
        await patiently(client, Transaction((), (Put("/b", b"1"),)))

        await until_done(lambda: members.remove(client, learner.id, 2))
        assert [each.name for each in await members.members(client, 2)] == ["m0"]
        await patiently(client, Transaction((), (Put("/c", b"1"),)))

    with Cluster(1, heartbeat_ms=50, election_ms=400) as cluster:
        run(test, cluster)


@pytest.mark.parametrize(
    "text", ["etcdserver: can only promote a learner member which is in sync with leader", "etcdserver: unhealthy cluster"]
)
def test_a_refusal_that_passes_by_itself_asks_for_patience(text):
    import grpc

    failure = judge(grpc.StatusCode.UNAVAILABLE, text, "e")
    assert failure.verdict is Verdict.REFUSED
    assert isinstance(failure.error, Busy)

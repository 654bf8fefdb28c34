"""Members of a cluster whose etcd its owner keeps: they lead on it, look after nothing of it, and go by what they joined with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from piccolod import etcd_conf
from piccolod.config import Etcd
from piccolod.errors import Conflict, Invalid, NotLeader, StoreRestored, StoreUnavailable
from piccolod.protocol.base import Level
from piccolod.protocol.cluster import AddMember, GetCluster, KnownMember, RemoveMember
from piccolod.protocol.consensus import Campaign
from piccolod.protocol.log import PutSnapshot
from services.consensus import seed
from services.consensus.after_crash import release
from services.consensus.etcd import members, status
from services.consensus.etcd.client import Client
from services.consensus.etcd.header import Header
from services.consensus.log_space import Space
from tests.etcd import Cluster
from tests.unit.consensus.etcd.conftest import eventually, opened
from tests.unit.consensus.etcd.member import House, Live, Node, house, living
from tests.unit.consensus.etcd.test_control_log import append, entry

NOTHING = frozenset[str]()


def section(etcd: Cluster) -> str:
    """In the clear, as loopback may be."""
    urls = ", ".join(f'"http://{endpoint}"' for endpoint in etcd.endpoints)
    return f'[etcd]\nmode = "external"\nendpoints = [{urls}]\n'


@pytest.fixture
def owned(etcd: Cluster) -> Iterator[House]:
    with house(etcd, section(etcd)) as made:
        yield made


def joiner(number: int, etcd_id: int) -> AddMember:
    address = f"10.77.0.{number}"
    return AddMember(
        node=f"n{number}", role="member", address=address, client_url="", peer_url="", rpc=f"{address}:7444", api_url="",
        etcd_id=etcd_id,
    )  # fmt: skip


async def etcd_id(home: House) -> int:
    async with opened(home.etcd) as client:
        return (await status.status(client, client.endpoint())).header.cluster_id


def told(live: Live) -> str:
    """What its health says now; empty: it is well."""
    level, reason = live.module.healths[-1]
    return "" if level is Level.OK else f"{level.value}: {reason}"


def test_one_leads_and_the_other_takes_over_when_it_is_gone(owned: House) -> None:
    async def main() -> None:
        first, second = await owned.begin(2)
        async with living(second) as two:
            async with living(first) as one:
                await one.lead()
                await two.stands_by(one)
                await one.has_takers()
                assert not (first.paths.cluster / "etcd.json").exists()
            assert (await two.lead()).epoch == 2

    asyncio.run(main())


def test_a_node_is_let_in_and_out_and_the_members_of_etcd_stay_as_they_are(owned: House) -> None:
    async def main() -> None:
        (first,) = await owned.begin(1)
        async with living(first) as one, opened(owned.etcd) as client:
            await one.lead()
            before, id = await members.members(client, 2), await etcd_id(owned)
            admission = await one.ask(joiner(2, id), "api")
            assert (admission.etcd_id, admission.initial_cluster, admission.etcd_token) == (id, {}, "")
            assert set(admission.members) == {"n1", "n2"}
            shown = await one.ask(GetCluster(), "api")
            assert (shown.etcd, shown.warnings) == ("external", ())
            assert {each.node: each.voter for each in shown.members} == {"n1": False, "n2": False}
            await one.ask(RemoveMember(node="n2"), "api")
            assert [each.node for each in (await one.ask(GetCluster(), "api")).members] == ["n1"]
            assert await members.members(client, 2) == before

    asyncio.run(main())


def test_a_node_that_speaks_to_another_etcd_is_not_let_in(owned: House) -> None:
    async def main() -> None:
        (first,) = await owned.begin(1)
        async with living(first) as one:
            await one.lead()
            with pytest.raises(Conflict, match="etcd of n2 has the id 7b, that of this cluster"):
                await one.ask(joiner(2, 0x7B), "api")
            assert [each.node for each in (await one.ask(GetCluster(), "api")).members] == ["n1"]

    asyncio.run(main())


def test_another_machine_that_has_its_name_is_not_taken_for_itself(owned: House) -> None:
    async def main() -> None:
        (node,) = await owned.begin(1)
        async with living(node) as live:
            await live.lead()
            async with opened(owned.etcd) as client:
                other = KnownMember(address="10.77.0.9", client_url="", rpc="10.77.0.9:7444")
                await seed.put_node(client, owned.prefix, "n1", other)
            await eventually(lambda: not node.token(), "it leads no more")
            with pytest.raises(NotLeader, match="taken out"):
                await live.ask(Campaign(resource="kernel"))

    asyncio.run(main())


def test_two_without_an_etcd_of_theirs_are_told_apart(owned: House) -> None:
    async def main() -> None:
        (first,) = await owned.begin(1)
        async with living(first) as one:
            await one.lead()
            id = await etcd_id(owned)
            await one.ask(joiner(2, id), "api")
            await one.ask(joiner(3, id), "api")
            assert len((await one.ask(GetCluster(), "api")).members) == 3

    asyncio.run(main())


def test_the_log_is_trimmed_and_the_history_of_others_is_not(owned: House, monkeypatch: pytest.MonkeyPatch) -> None:
    compacted: list[int] = []

    async def compact(client: Client, revision: int, within_s: float) -> None:
        compacted.append(revision)

    monkeypatch.setattr(status, "compact", compact)

    async def main() -> None:
        (first,) = await owned.begin(1)
        async with living(first) as one, opened(owned.etcd) as client:
            term = await one.lead()
            entries = [entry(rev) for rev in range(1, 61)]
            await append(one, term, *entries)
            await one.ask(PutSnapshot(token=term.token, rev=60, index=0, chunks=1, data=b"snapshot"))

            async def trimmed() -> bool:
                kept, _ = await client.list(f"{owned.prefix}ctl/log/", 2)
                return len(kept) < 60

            await eventually(trimmed, "what is in the snapshot is not in the log any more")

    asyncio.run(main())
    assert compacted == []


def test_a_mode_that_was_changed_later_is_told_of_and_not_obeyed(owned: House) -> None:
    async def main() -> None:
        (node,) = await owned.begin(1)
        async with living(node) as one:
            await one.lead()
            await eventually(lambda: told(one) == "", "it is well")
        node.configure("")
        async with living(node) as one:
            await one.lead()
            await eventually(lambda: "goes on with the endpoints of before" in told(one), "its health says so")
            assert told(one).startswith("WARN")

    asyncio.run(main())


def test_one_with_an_etcd_of_its_own_keeps_it(home: House) -> None:
    async def main() -> None:
        (node,) = await home.begin(1)
        node.configure('[etcd]\nmode = "external"\nendpoints = ["http://127.0.0.1:1"]\n')
        async with living(node) as one:
            await one.lead()
            await eventually(lambda: "with an etcd of its own" in told(one), "its health says so")
            assert told(one).startswith("WARN")

    asyncio.run(main())


def test_endpoints_of_another_etcd_are_not_believed(owned: House) -> None:
    async def main(other: Cluster) -> None:
        (node,) = await owned.begin(1)
        async with living(node) as one:
            await one.lead()
        node.configure(section(other))
        async with living(node) as one:
            await eventually(lambda: "[etcd] in the configuration names another one" in told(one), "its health says so")
            with pytest.raises((NotLeader, StoreUnavailable, StoreRestored)):
                await one.ask(Campaign(resource="kernel"))
            assert not node.token()

    with Cluster(1) as other:
        asyncio.run(main(other))


def test_the_quota_that_etcd_tells_counts_and_not_the_one_that_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    told_bytes = 0

    async def tell(client: Client, endpoint: str) -> status.Status:
        return status.Status(Header(1, 1, 1, 1), "3.6.0", 600 << 20, 600 << 20, 1, False, quota_bytes=told_bytes)

    monkeypatch.setattr(status, "status", tell)

    async def full() -> str:
        client = Client(["127.0.0.1:1"], None, rpc_s=1.0)
        space = Space(client, etcd_conf.OWNERS_QUOTA_BYTES)
        await space.look()
        await client.close()
        return space.full()

    assert asyncio.run(full()) == "", "2 GiB where it is too old to tell"
    told_bytes = 1 << 30
    assert "600 MiB" in asyncio.run(full()) and "512 MiB" in asyncio.run(full())


def test_without_any_endpoint_it_does_not_start_and_says_what_is_missing(owned: House) -> None:
    async def main() -> None:
        (node,) = await owned.begin(1)
        node.configure("")
        with pytest.raises(ExceptionGroup) as died:
            async with living(node):
                pass
        assert died.group_contains(Invalid, match="the configuration names none")

    asyncio.run(main())


def test_what_is_led_is_released_for_a_member_that_died(owned: House) -> None:
    async def main() -> Node:
        node, _ = await owned.begin(2)
        async with living(node) as one:
            await one.lead()
        return node

    node = asyncio.run(main())
    with pytest.raises(StoreUnavailable):
        release(node.paths, NOTHING, Etcd(mode="external", endpoints=["http://127.0.0.1:1"]))
    node.configure("")  # by what it remembers
    assert release(node.paths, NOTHING, node.config.etcd) == "released kernel; ended the session"

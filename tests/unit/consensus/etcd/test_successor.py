"""A cluster that was begun anew elsewhere: who was left behind leads nothing, though its own etcd answers with its quorum."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod import etcd_conf
from piccolod.errors import NotLeader, StoreRestored
from piccolod.leadership.events import Header, Memory
from piccolod.leadership.keys import GenRecord
from piccolod.paths import Paths
from piccolod.protocol.cluster import GetCluster, KnownMember, Leave
from piccolod.protocol.consensus import Campaign
from services.consensus import etcd_leaser, members_file, seed, successor
from services.consensus.etcd.client import Client
from services.consensus.successor import Successor, is_successor
from tests.etcd import Cluster
from tests.unit.consensus.etcd.conftest import eventually, opened
from tests.unit.consensus.etcd.member import GEN, House, Live, Node, living

KNOWN = Memory(5, 100_000, GEN)


@pytest.fixture(scope="module")
def begun_anew() -> Iterator[Cluster]:
    with Cluster(1, heartbeat_ms=50, election_ms=400) as cluster:
        yield cluster


@pytest.fixture
def anew(begun_anew: Cluster) -> Iterator[Cluster]:
    yield begun_anew
    begun_anew.revive()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_leaser, "SUCCESSOR_S", 0.2)


def n9(anew: Cluster) -> KnownMember:
    return KnownMember(address="10.77.0.9", client_url=anew.members[0].settings.client_url, rpc="")


async def member(home: House, anew: Cluster) -> Node:
    """One that led once, and knows n9 as another member."""
    (node,) = await home.begin(1)
    async with opened(home.etcd) as client:
        await seed.put_node(client, home.prefix, "n9", n9(anew))
    async with living(node) as live:
        await live.lead()
        await eventually(lambda: "n9" in (node.paths.cluster / "members.json").read_text(), "the disk has n9")
    return node


async def begin_anew(home: House, anew: Cluster, gen: int = GEN + 1) -> None:
    async with opened(anew) as client:
        await seed.put_node(client, home.prefix, "n9", n9(anew))
        await seed.put_gen(client, home.prefix, gen)


async def is_stopped(live: Live) -> None:
    await eventually(lambda: live.leaser.driver.state.restored, "it believes nothing of its etcd")
    assert not live.node.token()
    assert "recovered on n9, without this node" in live.leaser.trouble()
    for request in (Campaign(resource="kernel"), GetCluster(), Leave()):
        with pytest.raises(StoreRestored) as told:
            await live.ask(request)
        assert "cluster leave --force" in (told.value.hint or "")


@pytest.mark.parametrize(
    ("gen", "answered", "known", "is_one"),
    [
        (GenRecord(8, 6), 6, KNOWN, True),
        (GenRecord(7, 6), 6, KNOWN, False),
        (GenRecord(8, 6), 9, KNOWN, False),
        (GenRecord(8, 5), 5, KNOWN, False),
        (GenRecord(8, 6), 6, Memory(0, 0, 0), False),
        (GenRecord(8, 6), 6, Memory(5, 100_000, 7, restored=True), True),
    ],
    ids=["higher", "the same gen", "names another etcd", "this very etcd", "nothing was known", "distrusted already"],
)
def test_only_a_higher_gen_that_names_the_etcd_which_answers_counts(
    gen: GenRecord, answered: int, known: Memory, is_one: bool
) -> None:
    assert is_successor(gen, Header(answered, 3), known) is is_one


def test_whoever_is_or_was_a_member_is_asked_but_this_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def at(place: str) -> KnownMember:
        return KnownMember(address=place, client_url=f"http://{place}:2379", rpc="")

    asked: list[str] = []

    async def ask(self: Successor, client: Client, node: str, url: str, known: Memory) -> None:
        asked.append(url)

    monkeypatch.setattr(Successor, "_ask", ask)
    paths = Paths(state=tmp_path, run=tmp_path)
    paths.cluster.mkdir()
    etcd_conf.write(etcd_conf.Settings("n1", "http://10.0.0.1:2380", "http://10.0.0.1:2379", "token"), paths.etcd_conf)
    members_file.write(paths, {"n1": at("10.0.0.1"), "n2": at("10.0.0.2"), "n3": at("10.0.0.3")})
    members_file.begin_anew(paths, {"n1": at("10.0.0.1")})
    members_file.write(paths, {"n1": at("10.0.0.1"), "n3": at("10.0.0.4")})
    assert asyncio.run(Successor(paths, "/c/").look(KNOWN)) is None
    assert sorted(asked) == ["http://10.0.0.2:2379", "http://10.0.0.4:2379"]


def test_a_leader_that_hears_of_it_stops_for_good(home: House, anew: Cluster) -> None:
    async def main() -> None:
        node = await member(home, anew)
        async with living(node) as live:
            await live.lead()
            await begin_anew(home, anew)
            await is_stopped(live)
        async with living(node) as live:
            assert live.leaser.driver.state.restored, "the disk has it"
            anew.members[0].kill()
            await eventually(lambda: live.leaser.driver.state.boot_id, "it runs")
            with pytest.raises((StoreRestored, NotLeader)):
                await live.ask(Campaign(resource="kernel"))
            assert not node.page().sid

    asyncio.run(main())


def test_of_two_that_were_recovered_apart_the_one_with_the_lower_gen_stops(home: House, anew: Cluster) -> None:
    """It knows the other one as a former member alone."""

    async def main() -> None:
        (node,) = await home.begin(1)
        async with living(node) as live:
            await live.lead()
            own = await eventually(lambda: members_file.read(node.paths), "the disk has the members")
            members_file.write(node.paths, {**own, "n9": n9(anew)})
            members_file.begin_anew(node.paths, own)
            await begin_anew(home, anew)
            await is_stopped(live)

    asyncio.run(main())


def test_one_that_comes_back_asks_before_its_first_session(home: House, anew: Cluster) -> None:
    async def main() -> None:
        node = await member(home, anew)
        await begin_anew(home, anew)
        node.reboot()
        async with living(node) as live:
            assert live.leaser.driver.state.restored, "when its commands are served already"
            await is_stopped(live)
            assert not [role for role in live.roles() if role[0] == "leader"] and not node.page().sid

    asyncio.run(main())


def test_others_that_do_not_answer_delay_no_session_that_lives_on(
    home: House, anew: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(successor, "_ASK_S", 8.0)

    async def main() -> None:
        node = await member(home, anew)
        anew.members[0].freeze()
        async with living(node) as live:
            await live.lead()
            token = node.token()
        began = time.monotonic()
        async with living(node) as live:
            assert time.monotonic() - began < 6, "nobody was waited for"
            assert (await live.lead()).token == token

    asyncio.run(main())


def test_one_that_reaches_the_new_etcd_alone_finds_itself_out(home: House, anew: Cluster) -> None:
    async def main() -> None:
        node = await member(home, anew)
        await begin_anew(home, anew)
        for each in home.etcd.members:
            each.kill()
        node.reboot()
        async with living(node) as live:
            await eventually(lambda: "taken out of the cluster" in live.leaser.trouble(), "it finds itself out", 15)
            with pytest.raises(NotLeader):
                await live.ask(Campaign(resource="kernel"))
            assert (await live.ask(GetCluster())).out
            assert not node.token()

    asyncio.run(main())

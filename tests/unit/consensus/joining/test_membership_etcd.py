"""Nodes are let in and taken out, on real etcd."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from piccolod import cluster_mode
from piccolod.errors import Busy, Exists, Invalid, NotFound, OutcomeUnknown, PiccoloError
from piccolod.leadership import keys
from piccolod.leadership.keys import SessionRecord
from piccolod.paths import Paths
from piccolod.protocol.cluster import AddMember, KnownMember, Timing
from services.consensus import seed, wire
from services.consensus.cluster_records import prefix
from services.consensus.etcd import members as etcd_members
from services.consensus.etcd.client import Client
from services.consensus.etcd.members import Member
from services.consensus.etcd.transaction import Delete, Put, Transaction
from services.consensus.joining import members
from services.consensus.joining.folder import Folder
from services.consensus.joining.members import Membership
from tests.etcd import Cluster
from tests.unit.consensus.etcd.conftest import opened

pytestmark = pytest.mark.skipif(not shutil.which("etcd"), reason="needs etcd")

PREFIX = prefix("c1")
LOG = SimpleNamespace(info=lambda *_, **__: None)


@asynccontextmanager
async def founded(folder: Path) -> AsyncIterator[tuple[Client, Membership]]:
    """A cluster of one, as its leader administers it."""
    paths = Paths(state=folder, run=folder / "run")
    cluster_mode.make_folder(paths.cluster)
    kept = Folder(paths)
    kept.keep_timing(Timing(profile="fast", stop_s=0.1))
    with Cluster(1, heartbeat_ms=50, election_ms=400) as etcd:
        kept.keep_etcd(etcd.members[0].settings)
        async with opened(etcd) as client:
            yield client, Membership(client, PREFIX, kept, "n1", lambda: True, LOG)


def place(number: int) -> AddMember:
    address = f"127.0.0.{number}"
    return AddMember(
        node=f"n{number}", role="member", address=address, client_url=f"http://{address}:2379",
        peer_url=f"http://{address}:2380", rpc=f"{address}:7444", api_url="",
    )  # fmt: skip


async def peer_urls(client: Client) -> list[str]:
    return [url for each in await etcd_members.members(client, 2) for url in each.peer_urls]


def test_what_a_join_left_that_went_no_further_is_taken_out_by_its_name_and_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with founded(tmp_path) as (client, membership):
            add = etcd_members.add_learner

            async def add_and_crash(*asked: Any) -> Any:
                await add(*asked)
                raise RuntimeError("killed")

            with monkeypatch.context() as patch:
                patch.setattr(etcd_members, "add_learner", add_and_crash)
                with pytest.raises(RuntimeError):
                    await membership.add(place(2), "c1")
            assert place(2).peer_url in await peer_urls(client)
            await membership.remove("n2")
            assert place(2).peer_url not in await peer_urls(client)
            admission = await membership.add(place(3), "c1")
            assert set(admission.members) == {"n3"}
            assert place(3).peer_url in await peer_urls(client)

    asyncio.run(main())


def test_one_that_etcd_alone_knows_is_taken_out_also_when_the_answer_is_lost_and_another_is_no_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with founded(tmp_path) as (client, membership):
            there = [*await etcd_members.members(client, 2), Member(2**60, "n9", ("http://127.0.0.9:2380",), (), False)]

            async def look(*_: Any) -> list[Member]:
                return there

            async def remove(_: Any, id: int, __: float) -> None:
                assert there.pop().id == id
                raise OutcomeUnknown("cut off")

            monkeypatch.setattr(etcd_members, "members", look)
            monkeypatch.setattr(etcd_members, "remove", remove)
            await membership.remove("n9")
            assert len(there) == 1
            with pytest.raises(NotFound, match="n9 is no member"):
                await membership.remove("n9")

    asyncio.run(main())


def test_a_learner_that_is_silent_gets_no_vote_for_the_sake_of_another_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd takes one learner at a time, and would make a voter of one that is off: then the one that lives has no quorum."""

    async def main() -> None:
        async with founded(tmp_path) as (client, membership):
            await membership.add(place(2), "c1")
            monkeypatch.setattr(members, "_CHANGE_S", 0.1)
            asked: list[int] = []

            async def promote(_: Any, id: int, __: float) -> None:
                asked.append(id)

            monkeypatch.setattr(etcd_members, "promote", promote)
            with pytest.raises(Busy, match=r"127\.0\.0\.2.*is silent"):
                await membership.add(place(3), "c1")
            assert asked == [] and place(3).peer_url not in await peer_urls(client)

    asyncio.run(main())


def test_a_node_that_ends_containers_too_slowly_for_the_timing_is_not_let_in(tmp_path: Path) -> None:
    async def main() -> None:
        async with founded(tmp_path) as (client, membership):
            slow = msgspec.structs.replace(place(2), stop_s=0.6)
            with pytest.raises(Invalid, match=r"n2 ends a container in 0.60 s, too slow .* M >= F"):
                await membership.add(slow, "c1")
            assert place(2).peer_url not in await peer_urls(client) and not await membership.records()

    asyncio.run(main())


def test_a_name_is_not_given_away_while_somebody_acts_under_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(members, "_ENDED_S", 0.3)
        async with founded(tmp_path) as (client, membership):
            key = f"{PREFIX}{keys.SESSION}n2"
            session = wire.encode(SessionRecord(0, "boot", 1, 3.0))
            await client.transact(Transaction((), (Put(key, session),)), 2)
            with pytest.raises(Busy, match="session of the n2 that was a member before") as refused:
                await membership.add(place(2), "c1")
            assert refused.value.hint == "try again in a moment"
            assert place(2).peer_url not in await peer_urls(client) and not await membership.records()
            await client.transact(Transaction((), (Delete(key),)), 2)
            assert "n2" in (await membership.add(place(2), "c1")).members

    asyncio.run(main())


def test_a_join_that_etcd_refuses_for_good_leaves_no_record_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr(members, "_CHANGE_S", 0.3)
        async with founded(tmp_path) as (_, membership):
            answers: list[PiccoloError] = []

            async def add(*_: Any) -> None:
                raise answers.pop() if answers else Busy("too many learners")

            monkeypatch.setattr(etcd_members, "add_learner", add)
            with pytest.raises(Busy, match="does not take n2 yet: too many learners"):
                await membership.add(place(2), "c1")
            assert not await membership.records()
            answers.append(OutcomeUnknown("cut off"))
            with pytest.raises(Busy, match="does not take n2 yet"):
                await membership.add(place(2), "c1")
            assert set(await membership.records()) == {"n2"}, "etcd may take it yet"
            with pytest.raises(Busy, match="does not take n2 yet"):
                await membership.add(place(2), "c1")
            assert set(await membership.records()) == {"n2"}, "it was known before"

    asyncio.run(main())


def test_a_node_that_joins_again_with_new_data_is_another_member_of_etcd_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with founded(tmp_path) as (client, membership):
            first = (await membership.add(place(2), "c1")).member
            assert (await membership.add(place(2), "c1")).member == first, "its answer was lost: nothing has run there yet"
            again = msgspec.structs.replace(place(2), spent=first)
            second = (await membership.add(again, "c1")).member
            assert second != first
            assert (await membership.add(again, "c1")).member == second, "its answer was lost once more"
            assert (await membership.add(place(2), "c1")).member == second, "an order of the first attempt that comes late"
            there = [each.id for each in await etcd_members.members(client, 2) if place(2).peer_url in each.peer_urls]
            assert there == [second]

    asyncio.run(main())


def test_nobody_takes_the_member_of_another_node_out_by_a_join(tmp_path: Path) -> None:
    async def main() -> None:
        async with founded(tmp_path) as (client, membership):
            (own,) = await etcd_members.members(client, 2)
            with pytest.raises(Exists, match="has the peer address"):
                await membership.add(msgspec.structs.replace(place(2), peer_url=own.peer_urls[0], spent=own.id), "c1")
            assert [each.id for each in await etcd_members.members(client, 2)] == [own.id]

    asyncio.run(main())


def test_a_node_that_shares_its_address_with_another_is_taken_out_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with founded(tmp_path) as (client, membership):
            (own,) = await etcd_members.members(client, 2)
            address = urlsplit(own.peer_urls[0]).hostname or ""
            for name, port in ((own.name, 2379), ("n9", 2479)):
                record = KnownMember(address=address, client_url=f"http://{address}:{port}", rpc="")
                await seed.put_node(client, PREFIX, name, record)
            await membership.remove("n9")
            assert [each.id for each in await etcd_members.members(client, 2)] == [own.id]
            assert set(await membership.records()) == {own.name}

    asyncio.run(main())

"""The grant of the store's key to a member that came back, on real etcd: committed, seen, and for one session alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from piccolod import clock
from piccolod.errors import Conflict, Forbidden, NoLeader, NotLeader, PiccoloError, StoreUnavailable
from piccolod.leadership import keys
from piccolod.leadership.keys import SessionRecord
from piccolod.protocol.cluster import KnownMember
from piccolod.protocol.consensus import Campaign
from piccolod.protocol.unlocking import GrantUnlock
from services.consensus import cluster_records, seed, unlock_grants, wire
from services.consensus.cluster_records import UNLOCK, GrantRecord
from services.consensus.etcd.transaction import Delete, Put, Range, Transaction, absent
from tests.unit.consensus.etcd.conftest import eventually, opened
from tests.unit.consensus.etcd.member import House, Live, living

HOUR_S = 3600.0


async def asks_to_lead(live: Live) -> None:
    with contextlib.suppress(NotLeader, NoLeader):
        await live.ask(Campaign(resource="kernel"))


def request(sid: int, **other: Any) -> GrantUnlock:
    asked = GrantUnlock(node="n2", sid=sid, boot_id=clock.boot_id(), within_s=HOUR_S, known_ms=clock.wall_ms())
    return msgspec.structs.replace(asked, **other)


@asynccontextmanager
async def in_session(home: House) -> AsyncIterator[tuple[Live, Live, GrantUnlock]]:
    """Two members in session, and what the first one is asked to grant the second."""
    async with home.two() as (one, two):
        await one.in_session()
        yield one, two, request(await two.in_session())


async def granted(home: House) -> GrantRecord | None:
    async with opened(home.etcd) as client:
        found, _ = await client.find(Range(f"{home.prefix}{UNLOCK}n2"), 5)
    return msgspec.msgpack.decode(found.keys[0].value, type=GrantRecord) if found.keys else None


def test_a_grant_names_node_session_boot_and_giver(home: House) -> None:
    async def main() -> None:
        async with in_session(home) as (one, _, asked):
            await one.ask(asked)
            record = await granted(home)
            assert record is not None
            assert (record.node, record.sid, record.boot_id, record.giver) == ("n2", asked.sid, clock.boot_id(), "n1")

    asyncio.run(main())


@pytest.mark.parametrize(
    "other", [{"sid": 5}, {"boot_id": "another boot"}, {"node": "n1x"}], ids=["session", "boot", "name"]
)  # fmt: skip
def test_who_is_not_in_session_under_the_name_is_granted_nothing(home: House, other: dict[str, Any]) -> None:
    async def main() -> None:
        async with in_session(home) as (one, _, asked):
            with pytest.raises((Conflict, Forbidden), match=r"another session|no node of this cluster"):
                await one.ask(msgspec.structs.replace(asked, **other))
            assert await granted(home) is None

    asyncio.run(main())


def test_a_session_that_another_machine_takes_over_is_given_no_key_and_neither_is_the_other(home: House) -> None:
    """A cloned disk: the twin ends the session of the one that asks, and that one takes its name back at once."""

    async def main() -> None:
        async with in_session(home) as (one, two, asked):
            asking = asyncio.create_task(one.ask(asked))
            await eventually(lambda: granted(home), "the grant is committed")
            key = f"{home.prefix}{keys.SESSION}n2"
            async with opened(home.etcd) as client:
                twin = Put(key, wire.encode(SessionRecord(0, "the twin's boot", 0, 3.0)))

                async def takes_over() -> int:
                    """Its sid; 0 when the first one was faster."""
                    await client.transact(Transaction((), (Delete(key),)), 5)
                    done = await client.transact(Transaction((absent(key),), (twin,)), 5)
                    return done.revision if done.succeeded else 0

                twins = await eventually(takes_over, "the twin is in session")
            with pytest.raises(Conflict, match="two machines"):
                await asking
            await eventually(lambda: two.node.page().sid > twins, "the first one has its name again")
            with pytest.raises(Conflict, match="two machines"):
                await one.ask(request(twins, boot_id="the twin's boot"))

    asyncio.run(main())


def test_a_view_of_before_the_grant_says_nothing_of_the_session_that_asked() -> None:
    """A giver whose consensus has just restarted, or whose watch is silent: then it waits the whole time."""
    seen: dict[str, int] = {}
    view = SimpleNamespace(rev=6, sid=lambda node: seen.get(node, 0))
    grants = object.__new__(unlock_grants.UnlockGrants)
    grants._driver = SimpleNamespace(state=SimpleNamespace(view=view))  # type: ignore[assignment]
    assert not grants._is_replaced(request(5), 7)
    view.rev = 7
    assert grants._is_replaced(request(5), 7)
    seen["n2"] = 5
    assert not grants._is_replaced(request(5), 7)


def test_a_second_grant_meanwhile_ends_the_first(home: House) -> None:
    async def main() -> None:
        async with in_session(home) as (one, _, asked):
            asking = asyncio.create_task(one.ask(asked))
            await eventually(lambda: granted(home), "the grant is committed")
            other = GrantRecord("n2", asked.sid, "b", "n3", 1)
            async with opened(home.etcd) as client:
                await client.transact(Transaction((), (Put(f"{home.prefix}{UNLOCK}n2", msgspec.msgpack.encode(other)),)), 5)
            with pytest.raises(Conflict):
                await asking

    asyncio.run(main())


@pytest.mark.parametrize(
    ("gone", "why"),
    [
        (f"{keys.SESSION}n1", "this node's own session in etcd has just ended"),
        (f"{keys.SESSION}n2", "another session of n2"),
        (f"{cluster_records.NODE}n2", "n2 is no node of this cluster, or was removed"),
        (keys.GEN, "etcd was restored"),
    ],
)
def test_a_grant_that_something_crosses_is_refused_for_that_reason(home: House, gone: str, why: str) -> None:
    async def main() -> None:
        async with in_session(home) as (one, _, asked):
            driver = one.leaser.driver
            put = driver.put

            async def crossed(transaction: Any) -> Any:
                if any(each.key == f"{UNLOCK}n2" for each in transaction.puts):
                    async with opened(home.etcd) as client:
                        await client.transact(Transaction((), (Delete(home.prefix + gone),)), 5)
                return await put(transaction)

            driver.put = crossed  # type: ignore[method-assign]
            with pytest.raises(PiccoloError, match=why):
                await one.ask(asked)
            assert await granted(home) is None

    asyncio.run(main())


def test_a_witness_and_a_node_that_was_removed_are_granted_nothing(home: House) -> None:
    async def main() -> None:
        async with in_session(home) as (one, _, asked):
            async with opened(home.etcd) as client:
                record = KnownMember(address="10.77.0.2", client_url="", rpc="", role=cluster_records.WITNESS)
                await seed.put_node(client, home.prefix, "n2", record)
                with pytest.raises(Forbidden, match="witness"):
                    await one.ask(asked)
                await client.transact(Transaction((), (Delete(f"{home.prefix}{cluster_records.NODE}n2"),)), 5)
            with pytest.raises(Forbidden, match="removed"):
                await one.ask(asked)
            assert await granted(home) is None

    asyncio.run(main())


def test_without_a_quorum_nothing_is_granted(home: House) -> None:
    async def main() -> None:
        async with in_session(home) as (one, _, asked):

            async def cut_off(*_: Any, **__: Any) -> Any:
                raise StoreUnavailable("etcd does not answer")

            store = one.leaser.driver.store
            for name in ("read", "revisions", "commit"):
                setattr(store, name, cut_off)
            with pytest.raises(StoreUnavailable):
                await one.ask(asked)
        assert await granted(home) is None

    asyncio.run(main())


# --- when it was seen last


@pytest.mark.parametrize(
    ("last_s", "allowed"), [(0, False), (900_000, True), (996_399, False), (996_401, True), (1_003_601, False)]
)  # fmt: skip
def test_seen_is_within_an_hour_either_way_of_the_clock(last_s: int, allowed: bool) -> None:
    within_s = HOUR_S if last_s > 990_000 else 200_000.0
    if allowed:
        unlock_grants.check_seen("n2", (0, last_s * 1000), within_s, 1_000_000_000)
        unlock_grants.check_seen("n2", (last_s * 1000, 1 << 50), within_s, 1_000_000_000)  # let in by a clock far ahead
        return
    with pytest.raises(Forbidden, match="seen unlocked"):
        unlock_grants.check_seen("n2", (0, last_s * 1000), within_s, 1_000_000_000)


def test_who_is_locked_is_not_seen_and_who_was_is_remembered_by_the_next_life(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        file: Path = first.paths.cluster / "sightings.json"
        async with living(first) as one, living(second) as two:
            await one.lead()
            sid = await two.in_session()
            await eventually(lambda: "n2" in one.leaser.driver.state.view.sessions, "n1 sees the session")
            with pytest.raises(Forbidden, match="never seen unlocked"):
                await one.ask(request(sid, known_ms=0))
            await asks_to_lead(two)
            await eventually(file.exists, "n1 notes that it saw it")
            assert list(json.loads(file.read_text())) == ["n2"]
        async with living(first) as one, living(second) as two:
            await one.in_session()
            await one.ask(request(await two.in_session(), known_ms=0))

    asyncio.run(main())

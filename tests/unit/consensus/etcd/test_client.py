"""Calls while members are refused, frozen, lost; what a write that was not answered has done."""

from __future__ import annotations

import asyncio
import time

import pytest

from piccolod.errors import Bug, OutcomeUnknown, StoreUnavailable, TooLarge
from services.consensus.etcd.client import Client
from services.consensus.etcd.failures import Compacted, LeaseLost, TransactionUnknown
from services.consensus.etcd.status import compact
from services.consensus.etcd.transaction import (
    Delete,
    Deleted,
    Found,
    Put,
    Range,
    Transaction,
    Written,
    absent,
    created,
    modified,
    not_created,
    present,
    value,
    version,
)
from tests.node import free_port
from tests.unit.consensus.etcd.conftest import RPC_S, eventually, opened, patiently, run
from tests.unit.consensus.etcd.proxy import Proxy


def put(key: str, content: bytes = b"1") -> Transaction:
    return Transaction((absent(key),), (Put(key, content),))


def test_a_transaction_does_all_or_the_other(etcd, prefix):
    async def test(client: Client) -> None:
        key = f"{prefix}a"
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        first = await client.transact(put(key))
        assert first.succeeded
        assert first.answers == (Written(),)
        assert before <= first.sent_at <= time.clock_gettime(time.CLOCK_BOOTTIME)

        second = await client.transact(
            Transaction((absent(key),), (Put(key, b"2"),), (Range(key), Delete(f"{prefix}none"), Range(prefix, prefix=True)))
        )
        assert not second.succeeded
        one, none, many = second.answers
        assert isinstance(one, Found)
        assert (one.keys[0].key, one.keys[0].value, one.keys[0].create_revision) == (key, b"1", first.revision)
        assert none == Deleted(0)
        assert isinstance(many, Found)
        assert many.count == 1
        assert second.revision >= first.revision

    run(test, etcd)


def test_every_compare_says_what_it_means(etcd, prefix):
    async def test(client: Client) -> None:
        key, none = f"{prefix}a", f"{prefix}none"
        made = (await client.transact(Transaction((), (Put(key, b"1"),)))).revision
        changed = (await client.transact(Transaction((), (Put(key, b"2"),)))).revision
        holds = [
            present(key), created(key, made), modified(key, changed), version(key, 2), value(key, b"2"), absent(none),
            modified(none, 0), not_created(key, made + 1), not_created(none, made),
        ]  # fmt: skip
        fails = [
            absent(key), created(key, changed), modified(key, made), version(key, 1), value(key, b"1"), present(none),
            not_created(key, made),
        ]  # fmt: skip
        assert [(await client.transact(Transaction((each,)))).succeeded for each in holds] == [True] * len(holds)
        assert [(await client.transact(Transaction((each,)))).succeeded for each in fails] == [False] * len(fails)
        assert not (await client.transact(Transaction((*holds, fails[0])))).succeeded

    run(test, etcd)


def test_deletes_ranges_and_listings_in_pages(etcd, prefix):
    async def test(client: Client) -> None:
        for batch in range(0, 1200, 100):
            puts = tuple(Put(f"{prefix}{number:04}", b"%d" % number) for number in range(batch, batch + 100))
            await client.transact(Transaction((), puts))
        await client.transact(Transaction((), (Put(f"{prefix[:-1]}0", b"beyond the prefix"),)))
        keys, revision = await client.list(prefix, 5)
        assert [each.value for each in keys] == [b"%d" % number for number in range(1200)]
        page, at = await client.find(Range(prefix, prefix=True, limit=2, keys_only=True), 5)
        assert (len(page.keys), page.more, page.count, page.keys[0].value) == (2, True, 1200, b"")
        assert at == revision
        gone = await client.transact(Transaction((), (Delete(prefix, prefix=True),)))
        assert gone.answers == (Deleted(1200),)
        then, _ = await client.find(Range(prefix, prefix=True, revision=revision), 5)
        assert then.count == 1200

    run(test, etcd)


def test_a_transaction_that_is_too_long_is_our_fault_and_one_that_is_too_large_is_refused(etcd, prefix):
    async def test(client: Client) -> None:
        with pytest.raises(Bug, match="at most 128"):
            await client.transact(Transaction((), tuple(Put(f"{prefix}{n}", b"") for n in range(129))))
        with pytest.raises(TooLarge):
            await client.transact(put(f"{prefix}big", bytes(2 << 20)), 5)
        assert (await client.list(prefix, 5))[0] == []

    run(test, etcd)


def test_a_put_on_a_lease_that_is_no_more_changes_nothing(etcd, prefix):
    async def test(client: Client) -> None:
        with pytest.raises(LeaseLost):
            await client.transact(Transaction((), (Put(f"{prefix}a", b""), Put(f"{prefix}b", b"", lease=4711))))
        assert (await client.list(prefix, 5))[0] == []

    run(test, etcd)


def test_a_compacted_revision_is_named(etcd, prefix):
    async def test(client: Client) -> None:
        old = (await client.transact(put(f"{prefix}a"))).revision
        new = (await client.transact(put(f"{prefix}b"))).revision
        await compact(client, new, 5)
        with pytest.raises(Compacted):
            await client.find(Range(prefix, prefix=True, revision=old), 5)

    run(test, etcd)


# --- endpoints


def test_a_refused_endpoint_costs_no_time(etcd, prefix):
    async def test() -> None:
        client = Client([f"127.0.0.1:{free_port()}", *etcd.endpoints], None, rpc_s=RPC_S)
        began = time.monotonic()
        await client.transact(put(f"{prefix}a"))
        assert time.monotonic() - began < 0.2
        assert client.endpoint() == etcd.endpoints[0]
        await client.close()

    asyncio.run(test())


def test_a_killed_member_is_left_at_once_and_used_again_later(etcd, prefix):
    async def test(client: Client) -> None:
        await client.transact(put(f"{prefix}a"))
        follower.kill()

        async def lost() -> bool:
            return not await client.channel(follower.endpoint).ready(0.01)

        await eventually(lost, "the loss is seen")
        began = time.monotonic()
        await client.transact(put(f"{prefix}b"))
        assert time.monotonic() - began < 0.2
        follower.start()
        client.renew([follower.endpoint], None)
        await client.find(Range(prefix), 5)

    follower = next(each for each in etcd.members if each is not etcd.leader())
    run(test, etcd, etcd.members.index(follower))


def test_a_frozen_local_member_costs_a_read_one_timeout_and_the_next_nothing(etcd, prefix):
    async def test(client: Client) -> None:
        await client.transact(put(f"{prefix}a"))
        follower.freeze()
        began = time.monotonic()
        found, _ = await client.find(Range(f"{prefix}a"), 2)
        assert found.count == 1
        assert RPC_S <= time.monotonic() - began < RPC_S + 0.2
        began = time.monotonic()
        await client.find(Range(f"{prefix}a"), 2)
        assert time.monotonic() - began < 0.1

    follower = next(each for each in etcd.members if each is not etcd.leader())
    run(test, etcd, etcd.members.index(follower))


def test_sixteen_at_once_on_a_frozen_member_turn_together(etcd, prefix):
    async def test(client: Client) -> None:
        await client.transact(put(f"{prefix}a"))
        follower.freeze()
        began = time.monotonic()
        await asyncio.gather(*(client.find(Range(f"{prefix}a"), 2) for _ in range(16)))
        assert time.monotonic() - began < RPC_S + 0.3

    follower = next(each for each in etcd.members if each is not etcd.leader())
    run(test, etcd, etcd.members.index(follower))


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_a_lost_leader_costs_an_election(etcd, prefix, fault):
    async def test(client: Client) -> None:
        await client.transact(put(f"{prefix}a"))
        getattr(leader, fault)()
        began = time.monotonic()
        await patiently(client, put(f"{prefix}b"))
        assert time.monotonic() - began < 2.5

    leader = etcd.leader()
    run(test, etcd, etcd.members.index(leader))


def test_without_a_quorum_every_call_ends_in_time_and_all_is_well_afterwards(etcd, prefix):
    async def test(client: Client) -> None:
        await client.transact(put(f"{prefix}a"))
        leader = etcd.leader()
        others = [each for each in etcd.members if each is not leader]
        for each in others:
            each.freeze()
        for call in (client.transact(put(f"{prefix}b"), 0.6), client.find(Range(prefix, prefix=True), 0.6)):
            began = time.monotonic()
            with pytest.raises((StoreUnavailable, OutcomeUnknown)):
                await call
            assert time.monotonic() - began < 0.8
        stale, _ = await client.find(Range(f"{prefix}a", serializable=True), 3)
        assert stale.count == 1
        for each in others:
            each.thaw()
        await patiently(client, put(f"{prefix}c"))

    run(test, etcd, etcd.members.index(etcd.leader()))


# --- what a write that was not answered has done


def test_a_write_whose_answer_is_lost_is_unknown_and_did_happen(etcd, prefix):
    async def test() -> None:
        async with Proxy(etcd.endpoints[0]) as proxy, opened(etcd) as other:
            client = Client([proxy.endpoint, etcd.endpoints[1]], None, rpc_s=RPC_S)
            await client.transact(put(f"{prefix}a"))
            proxy.loses_answers = True
            began = time.monotonic()
            with pytest.raises(TransactionUnknown):
                await client.transact(put(f"{prefix}b"))
            assert time.monotonic() - began < RPC_S + 0.2
            assert len((await other.list(prefix, 5))[0]) == 2
            # Tried again on the next endpoint, its own guard tells that it had happened.
            assert not (await client.transact(put(f"{prefix}b"))).succeeded
            await client.close()

    asyncio.run(test())


def test_a_write_whose_connection_breaks_is_unknown(etcd, prefix):
    async def test() -> None:
        async with Proxy(etcd.endpoints[0]) as proxy:
            client = Client([proxy.endpoint, etcd.endpoints[1]], None, rpc_s=1.0)
            await client.transact(put(f"{prefix}a"))
            proxy.loses_answers = True
            write = asyncio.create_task(client.transact(put(f"{prefix}b")))
            await asyncio.sleep(0.05)
            proxy.cut()
            with pytest.raises(TransactionUnknown):
                await write
            await client.close()

    asyncio.run(test())


def test_a_write_that_could_not_be_sent_surely_did_not_happen(etcd, prefix):
    async def test() -> None:
        async with opened(etcd) as other:
            client = Client([f"127.0.0.1:{free_port()}"], None, rpc_s=RPC_S)
            with pytest.raises(StoreUnavailable) as refused:
                await client.transact(put(f"{prefix}a"))
            assert not isinstance(refused.value, TransactionUnknown)
            assert (await other.list(prefix, 5))[0] == []
            await client.close()

    asyncio.run(test())


def test_a_write_that_is_given_more_time_waits_for_its_one_answer(etcd, prefix):
    async def test(client: Client) -> None:
        await client.transact(put(f"{prefix}a"))
        follower.freeze()
        write = asyncio.create_task(client.transact(put(f"{prefix}b"), 5))
        await asyncio.sleep(2 * RPC_S)
        assert not write.done()
        follower.thaw()
        assert (await write).succeeded

    follower = next(each for each in etcd.members if each is not etcd.leader())
    run(test, etcd, etcd.members.index(follower))


def test_what_a_caller_gives_up_leaves_the_client_sound(etcd, prefix):
    async def test(client: Client) -> None:
        tasks = [asyncio.create_task(client.transact(put(f"{prefix}{n}"))) for n in range(32)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await client.transact(put(f"{prefix}last"))).succeeded

    run(test, etcd)


def test_other_members_and_certificates_take_the_place_of_the_old_ones(etcd, prefix):
    async def test(client: Client) -> None:
        await client.transact(put(f"{prefix}a"))
        client.renew(etcd.endpoints[1:], None)
        assert client.endpoint() == etcd.endpoints[1]
        await client.transact(put(f"{prefix}b"))

    run(test, etcd)

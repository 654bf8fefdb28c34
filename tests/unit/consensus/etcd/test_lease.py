from __future__ import annotations

import asyncio
import time

import pytest

from piccolod.errors import StoreUnavailable
from services.consensus.etcd import lease
from services.consensus.etcd.client import Client
from services.consensus.etcd.failures import LeaseLost
from services.consensus.etcd.transaction import Put, Range, Transaction
from tests.unit.consensus.etcd.conftest import RPC_S, eventually, run


def test_what_hangs_on_a_lease_lives_while_it_is_renewed_and_goes_with_it(etcd, prefix):
    async def test(client: Client) -> None:
        granted = await lease.grant(client, 2)
        await client.transact(Transaction((), (Put(f"{prefix}a", b"", lease=granted.id),)))
        keep_alive = lease.KeepAlive(client, granted.id)
        until = time.monotonic() + granted.ttl_s + 0.8
        while time.monotonic() < until:
            renewal = await keep_alive.renew(1)
            assert renewal.ttl_s == granted.ttl_s
            await asyncio.sleep(0.3)
        found, _ = await client.find(Range(f"{prefix}a"), 5)
        assert found.keys[0].lease == granted.id

        async def gone() -> bool:
            return not (await client.find(Range(f"{prefix}a"), 5))[0].count

        await eventually(gone, "the key has expired", granted.ttl_s + 2)
        with pytest.raises(LeaseLost):
            await keep_alive.renew(1)
        keep_alive.close()

    run(test, etcd)


def test_a_revoked_lease_takes_its_keys_and_is_told_by_the_next_renewal(etcd, prefix):
    async def test(client: Client) -> None:
        granted = await lease.grant(client, 5)
        keep_alive = lease.KeepAlive(client, granted.id)
        await client.transact(Transaction((), (Put(f"{prefix}a", b"", lease=granted.id),)))
        await keep_alive.renew(1)
        await lease.revoke(client, granted.id)
        assert (await client.list(prefix, 5))[0] == []
        with pytest.raises(LeaseLost):
            await keep_alive.renew(1)
        keep_alive.close()
        await lease.revoke(client, granted.id)  # twice does no harm

    run(test, etcd)


@pytest.mark.parametrize("fault", ["kill", "freeze"])
@pytest.mark.parametrize("who", ["leader", "follower"])
def test_a_lease_outlives_the_member_that_it_is_renewed_at(etcd, prefix, fault, who):
    async def test(client: Client) -> None:
        granted = await lease.grant(client, 4)
        await client.transact(Transaction((), (Put(f"{prefix}a", b"", lease=granted.id),)))
        keep_alive = lease.KeepAlive(client, granted.id)
        await keep_alive.renew(1)
        getattr(member, fault)()
        began = time.monotonic()
        await keep_alive.renew(3)
        assert time.monotonic() - began < 2.5
        await keep_alive.renew(1)
        keep_alive.close()
        assert (await client.find(Range(f"{prefix}a"), 5))[0].count == 1

    leader = etcd.leader()
    member = leader if who == "leader" else next(each for each in etcd.members if each is not leader)
    run(test, etcd, etcd.members.index(member))


def test_nobody_answers_in_time(etcd):
    async def test(client: Client) -> None:
        granted = await lease.grant(client, 30)
        keep_alive = lease.KeepAlive(client, granted.id)
        await keep_alive.renew(1)
        for member in etcd.members:
            member.freeze()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="not renewed"):
            await keep_alive.renew(2 * RPC_S)
        assert time.monotonic() - began < 2 * RPC_S + 0.3
        for member in etcd.members:
            member.thaw()
        await keep_alive.renew(5)
        keep_alive.close()

    run(test, etcd)


def test_two_renewals_at_once_share_the_stream(etcd):
    async def test(client: Client) -> None:
        granted = await lease.grant(client, 30)
        keep_alive = lease.KeepAlive(client, granted.id)
        renewals = await asyncio.gather(*(keep_alive.renew(1) for _ in range(20)))
        assert {each.ttl_s for each in renewals} == {30}
        assert [each.sent_at for each in renewals] == sorted(each.sent_at for each in renewals)
        keep_alive.close()

    run(test, etcd)


def test_a_renewal_that_is_given_up_leaves_no_answer_for_the_next(etcd):
    async def test(client: Client) -> None:
        granted = await lease.grant(client, 30)
        keep_alive = lease.KeepAlive(client, granted.id)
        await keep_alive.renew(1)
        member = etcd.members[0]
        member.freeze()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(keep_alive.renew(1), 0.1)
        member.thaw()
        began = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert (await keep_alive.renew(3)).sent_at >= began
        keep_alive.close()

    run(test, etcd)

"""Certificates on both sides: only members of the cluster's own CA speak to each other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod.errors import StoreUnavailable
from services.consensus.etcd import lease
from services.consensus.etcd.channel import Tls
from services.consensus.etcd.transaction import Put, Transaction, absent
from services.consensus.etcd.watch import Watch
from tests.etcd import Authority, Cluster
from tests.unit.consensus.etcd.conftest import Follower, opened


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("theirs"))


@pytest.fixture(scope="module")
def secure(ours: Authority) -> Iterator[Cluster]:
    with Cluster(2, ours, heartbeat_ms=50, election_ms=400) as cluster:
        yield cluster


def tls(ca: Path, pair: tuple[Path, Path]) -> Tls:
    return Tls(ca.read_bytes(), pair[0].read_bytes(), pair[1].read_bytes())


async def writes(cluster: Cluster, credentials: Tls | None, key: str) -> bool:
    async with opened(cluster, tls=credentials) as client:
        return (await client.transact(Transaction((absent(key),), (Put(key, b"1"),)), 1.0)).succeeded


def test_a_node_of_the_cluster_does_everything(secure, ours, prefix):
    async def test() -> None:
        async with opened(secure, tls=tls(ours.ca, ours.sign("client"))) as client:
            granted = await lease.grant(client, 5)
            keep_alive = lease.KeepAlive(client, granted.id)
            follower = Follower(Watch(client, prefix, 0, 2))
            made = await client.transact(Transaction((), (Put(f"{prefix}a", b"1", lease=granted.id),)))
            await follower.until_revision(made.revision)
            assert (await keep_alive.renew(1)).ttl_s == 5
            keep_alive.close()
            await follower.stop()

    asyncio.run(test())


def test_a_certificate_of_a_foreign_ca_is_refused_by_etcd(secure, ours, theirs, prefix):
    with pytest.raises(StoreUnavailable, match="one of us refuses the other"):
        asyncio.run(writes(secure, tls(ours.ca, theirs.sign("client")), f"{prefix}a"))


def test_an_etcd_of_a_foreign_ca_is_refused_by_us(secure, ours, theirs, prefix):
    with pytest.raises(StoreUnavailable, match="one of us refuses the other"):
        asyncio.run(writes(secure, tls(theirs.ca, ours.sign("client")), f"{prefix}a"))


def test_a_client_in_the_clear_gets_nothing(secure, prefix):
    with pytest.raises(StoreUnavailable):
        asyncio.run(writes(secure, None, f"{prefix}a"))


def test_an_etcd_with_the_certificate_of_another_address_is_refused(ours, prefix):
    class Elsewhere(Authority):
        def sign(self, name: str, address: str = "127.0.0.1") -> tuple[Path, Path]:
            return ours.sign(name, "127.0.0.9")

    authority = object.__new__(Elsewhere)
    authority.ca = ours.ca
    with Cluster(1, authority) as cluster:
        with pytest.raises(StoreUnavailable, match="one of us refuses the other"):
            asyncio.run(writes(cluster, tls(ours.ca, ours.sign("client")), f"{prefix}a"))


def test_new_certificates_are_taken_while_it_runs(secure, ours, theirs, prefix):
    async def test() -> None:
        async with opened(secure, tls=tls(ours.ca, theirs.sign("client"))) as client:
            with pytest.raises(StoreUnavailable):
                await client.transact(Transaction((), (Put(f"{prefix}a", b"1"),)))
            client.renew(secure.endpoints, tls(ours.ca, ours.sign("client")))
            await client.transact(Transaction((), (Put(f"{prefix}a", b"1"),)), 2)

    asyncio.run(test())

"""Real etcd: three members for most tests, each whole again before the next one; others where a test makes them."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from piccolod.errors import OutcomeUnknown, StoreUnavailable
from piccolod.leadership import keys
from services.consensus.etcd.client import Client
from services.consensus.etcd.transaction import KeyValue, Put, Transaction, absent
from services.consensus.etcd.watch import Relist, Revision, Watch
from tests.etcd import Cluster

if TYPE_CHECKING:
    from tests.unit.consensus.etcd.member import House

RPC_S = 0.3
SILENCE_S = 2 * 0.5 + RPC_S


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not shutil.which("etcd"):
        for item in items:
            if "tests/unit/consensus/etcd" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="needs etcd"))


@pytest.fixture(scope="session")
def three_members() -> Iterator[Cluster]:
    with Cluster(3, heartbeat_ms=50, election_ms=400) as cluster:
        yield cluster


@pytest.fixture
def etcd(three_members: Cluster) -> Iterator[Cluster]:
    yield three_members
    three_members.revive()


@pytest.fixture
def home(etcd: Cluster) -> Iterator[House]:
    from tests.unit.consensus.etcd.member import house  # which needs this file

    with house(etcd) as made:
        yield made


def run(test: Callable[[Client], Awaitable[Any]], cluster: Cluster, first: int = 0, **options: Any) -> None:
    """Runs `test(client)`, the client's local endpoint being member `first`."""

    async def main() -> None:
        async with opened(cluster, first, **options) as client:
            await test(client)

    asyncio.run(main())


@asynccontextmanager
async def opened(cluster: Cluster, first: int = 0, **options: Any) -> AsyncIterator[Client]:
    endpoints = cluster.endpoints[first:] + cluster.endpoints[:first]
    client = Client(endpoints, options.pop("tls", None), rpc_s=RPC_S, **options)
    try:
        yield client
    finally:
        await client.close()


async def eventually(condition: Callable[[], Awaitable[Any]] | Callable[[], Any], what: str, within_s: float = 8.0) -> Any:
    give_up_at = asyncio.get_running_loop().time() + within_s
    while True:
        seen = condition()
        if asyncio.iscoroutine(seen):
            seen = await seen
        if seen:
            return seen
        assert asyncio.get_running_loop().time() < give_up_at, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.02)


async def patiently(client: Client, transaction: Transaction, within_s: float = 8.0) -> Any:
    """Its result, however often that must be tried: for transactions that bear it."""
    give_up_at = asyncio.get_running_loop().time() + within_s
    while True:
        try:
            return await client.transact(transaction)
        except (StoreUnavailable, OutcomeUnknown):
            assert asyncio.get_running_loop().time() < give_up_at
            await asyncio.sleep(0.02)


class Writer:
    """Another client, that writes key after key, each once; what became of an unanswered one shows in the listing."""

    def __init__(self, client: Client, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self.written = 0
        self._task = asyncio.create_task(self._write())

    async def _write(self) -> None:
        for number in range(1_000_000):
            key = f"{self._prefix}{number:06}"
            with suppress(StoreUnavailable, OutcomeUnknown):
                await self._client.transact(Transaction((absent(key),), (Put(key, b"x"),)))
                self.written += 1
            await asyncio.sleep(0.004)

    async def stop(self) -> list[KeyValue]:
        """Everything that was written, in the order in which it was."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await asyncio.sleep(RPC_S)  # for what was on its way
        keys, _ = await self._client.list(self._prefix, 10)
        return sorted(keys, key=lambda each: each.mod_revision)


class Follower:
    """Keeps what a watch says."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.seen: list[Revision] = []
        self.relists: list[Relist] = []
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for news in self.watch.news():
            if isinstance(news, Revision):
                self.seen.append(news)
            else:
                self.relists.append(news)

    async def until_revision(self, revision: int) -> None:
        await eventually(lambda: self._task.done() or self.watch.revision >= revision, "the watch has caught up")

    async def stop(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


@pytest.fixture
def prefix() -> str:
    """Keys of this test alone, in a cluster that many share."""
    return f"/test/{os.urandom(6).hex()}/"


async def put_keyset(client: Client, prefix: str, keyset: bytes) -> None:
    """As the first leader's store puts it there."""
    await client.transact(Transaction((), (Put(prefix + keys.KEYSET, keyset),)), 5.0)

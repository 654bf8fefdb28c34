"""The log of a node alone arrives in etcd as it was, or not at all."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest

from piccolod.errors import Conflict
from piccolod.leadership import keys
from piccolod.protocol.log import CHUNK_BYTES, Chunk, ExportChunk, Exported, ExportLog, SealedEntry, SnapshotInfo
from services.consensus import cluster_records, wire
from services.consensus.cluster_records import log_key
from services.consensus.etcd.client import Client
from services.consensus.joining.moving import Move, batches
from tests.etcd import Cluster

pytestmark = pytest.mark.skipif(not shutil.which("etcd"), reason="needs etcd")
PREFIX = "/piccolo/c/"
GEN = 7


@pytest.fixture(scope="module")
def etcd() -> Iterator[Cluster]:
    with Cluster(1) as cluster:
        yield cluster


def entry(rev: int, size: int = 100) -> SealedEntry:
    return SealedEntry(rev, b"header", b"nonce", bytes(size), b"digest of %d" % rev)


class Log:
    """A log that is written while it moves."""

    def __init__(self, first: int, head: int, snapshot: SealedEntry | None = None) -> None:
        self.first, self.head, self.snapshot = first, head, snapshot
        self.keyset = b"keyset 1"
        self.held = False
        self.head_digest: bytes | None = None

    async def ask(self, request: Any) -> Any:
        raw = b"" if self.snapshot is None else msgspec.msgpack.encode(self.snapshot)
        if isinstance(request, ExportChunk):
            assert self.snapshot is not None and request.rev == self.snapshot.rev
            return Chunk(data=raw[request.index * CHUNK_BYTES :][:CHUNK_BYTES])
        info = self.snapshot and SnapshotInfo(rev=self.snapshot.rev, chunks=-(-len(raw) // CHUNK_BYTES), size_bytes=len(raw))
        return await self.export(request, info if request.after == 0 else None)

    async def export(self, request: ExportLog, info: SnapshotInfo | None) -> Exported:
        self.held = self.held or request.hold_s > 0
        revs = range(max(self.first, request.after + 1), min(self.head, request.after + request.limit) + 1)
        return Exported(
            cluster="c", gen=1, head_rev=self.head, head_digest=self.head_digest or b"digest of %d" % self.head,
            snapshot=info, entries=tuple(entry(rev) for rev in revs),
            keyset=self.keyset,
        )  # fmt: skip


def moving(etcd: Cluster, log: Log, work: Callable[[Move, Client], Awaitable[None]]) -> None:
    async def main() -> None:
        client = Client(etcd.endpoints, None, rpc_s=2.0)
        try:
            await work(Move(client, PREFIX, GEN, log.ask), client)
        finally:
            await client.close()

    etcd.leader().ctl("del", "--prefix", PREFIX)
    asyncio.run(main())


async def found(client: Client) -> dict[str, bytes]:
    items, _ = await client.list(PREFIX, 5)
    return {item.key.removeprefix(PREFIX): item.value for item in items}


def test_every_entry_the_keyset_and_the_head_arrive_also_what_came_meanwhile(etcd: Cluster) -> None:
    log = Log(1, 600)

    async def work(move: Move, client: Client) -> None:
        await move.begin()
        log.head, log.keyset = 700, b"keyset 2"
        assert not log.held
        await move.finish(5.0)
        assert log.held
        seen = await found(client)
        assert [seen[log_key(rev)] for rev in range(1, 701)] == [msgspec.msgpack.encode(entry(rev)) for rev in range(1, 701)]
        assert seen[keys.KEYSET] == b"keyset 2"
        head = wire.decode(keys.KERNEL_HEAD, seen[keys.KERNEL_HEAD])
        assert (head.rev, head.digest, head.gen) == (700, b"digest of 700", GEN)

    moving(etcd, log, work)


@pytest.mark.parametrize("tail", [0, 3])
def test_a_snapshot_stands_for_what_the_log_has_no_more(etcd: Cluster, tail: int) -> None:
    snapshot = entry(1000, CHUNK_BYTES + 10)
    log = Log(1001, 1000 + tail, snapshot)

    async def work(move: Move, client: Client) -> None:
        await move.begin()
        await move.finish(5.0)
        seen = await found(client)
        record = wire.decode(cluster_records.SNAPSHOT, seen[cluster_records.SNAPSHOT])
        chunks = [seen[cluster_records.chunk_key(1000, index)] for index in range(record.chunks)]
        assert record.chunks == 2 and record.rev == 1000
        assert msgspec.msgpack.decode(b"".join(chunks), type=SealedEntry) == snapshot
        assert len([key for key in seen if key.startswith(cluster_records.LOG)]) == tail
        assert wire.decode(keys.KERNEL_HEAD, seen[keys.KERNEL_HEAD]).rev == 1000 + tail

    moving(etcd, log, work)


def test_a_log_that_does_not_end_as_it_said_is_no_log_of_a_cluster(etcd: Cluster) -> None:
    log = Log(1, 10)

    async def work(move: Move, client: Client) -> None:
        await move.begin()
        log.head_digest = b"another"
        with pytest.raises(Conflict, match="ends at rev 10"):
            await move.finish(5.0)

    moving(etcd, log, work)


@pytest.mark.parametrize("change", ["rev", "digest", "keyset"])
def test_what_changes_after_the_head_was_put_is_found_before_the_rename(etcd: Cluster, change: str) -> None:
    log = Log(1, 10)

    async def work(move: Move, client: Client) -> None:
        await move.begin()
        await move.follow(5.0)
        await move.finish(5.0)
        await move.check(5.0)
        if change == "rev":
            log.head = 11
        elif change == "digest":
            log.head_digest = b"another"
        else:
            log.keyset = b"keyset 2"
        with pytest.raises(Conflict, match="has changed while it was moved"):
            await move.check(5.0)

    moving(etcd, log, work)


def test_a_transaction_takes_no_more_than_etcd_does() -> None:
    entries = [entry(rev, size) for rev, size in enumerate([10] * 130 + [900_000] * 3)]
    sizes = [(len(batch), sum(len(each.sealed) for each in batch)) for batch in batches(entries)]
    assert [count for count, _ in sizes] == [64, 64, 3, 1, 1]
    assert all(size <= 1_280 * 1024 for _, size in sizes)
    assert [each for batch in batches(entries) for each in batch] == entries
    assert list(batches([])) == []

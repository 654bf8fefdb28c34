"""The sealed log of a node alone moves into etcd: its newest snapshot, every entry behind it, the keyset. Bytes as they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

from piccolod.errors import Conflict
from piccolod.leadership import keys
from piccolod.protocol.log import APPEND_BYTES, APPEND_ENTRIES, CHUNK_BYTES, Exported, ExportLog, SealedEntry
from services.consensus import cluster_records, wire
from services.consensus.cluster_records import HeadRecord, SnapshotRecord, chunk_key, log_key
from services.consensus.etcd.client import Client
from services.consensus.etcd.transaction import Put, Transaction

_PUT_S: Final = 10.0

Ask = Callable[[ExportLog], Awaitable[Exported]]


class Move:
    """Of one log into an etcd that nobody else writes yet."""

    def __init__(self, client: Client, prefix: str, ask: Ask) -> None:
        self._client = client
        self._prefix = prefix
        self._ask = ask
        self._rev = 0
        self._digest = b""

    async def begin(self) -> None:
        """All that there is now. What is written meanwhile comes with `finish`."""
        first = await self._ask(ExportLog(after=0))
        if first.snapshot is not None:
            await self._put_snapshot(first.snapshot)
            self._rev, self._digest = first.snapshot.rev, first.snapshot.digest
        await self._rest(first)

    async def finish(self, gen: int, hold_s: float) -> None:
        """The rest, while writes are held back; then the head. Raises Conflict unless it is all there is."""
        last = await self._rest(await self._ask(ExportLog(after=self._rev, hold_s=hold_s)))
        if (self._rev, self._digest) != (last.head_rev, last.head_digest):
            raise Conflict(f"the log moved is at rev {self._rev}, the one here at {last.head_rev}", hint="try again")
        keyset = (await self._ask(ExportLog(after=0, limit=1))).keyset  # it may have changed since
        head = HeadRecord(rev=self._rev, digest=self._digest, gen=gen)
        await self._put(Put(self._prefix + keys.KEYSET, keyset), Put(self._prefix + keys.KERNEL_HEAD, wire.encode(head)))

    async def _rest(self, exported: Exported) -> Exported:
        while True:
            for batch in batches(exported.entries):
                await self._put(*(Put(self._prefix + log_key(each.rev), wire.encode(each)) for each in batch))
                self._rev, self._digest = batch[-1].rev, batch[-1].digest
            if not exported.entries or self._rev >= exported.head_rev:
                return exported
            exported = await self._ask(ExportLog(after=self._rev))

    async def _put_snapshot(self, snapshot: SealedEntry) -> None:
        """The record that makes it count comes last."""
        raw = wire.encode(snapshot)
        chunks = [raw[at : at + CHUNK_BYTES] for at in range(0, len(raw), CHUNK_BYTES)]
        for index, chunk in enumerate(chunks):
            await self._put(Put(self._prefix + chunk_key(snapshot.rev, index), chunk))
        record = SnapshotRecord(rev=snapshot.rev, chunks=len(chunks), size_bytes=len(raw))
        await self._put(Put(self._prefix + cluster_records.SNAPSHOT, wire.encode(record)))

    async def _put(self, *operations: Put) -> None:
        await self._client.transact(Transaction(then=operations), _PUT_S)


def batches(entries: Sequence[SealedEntry]) -> Iterator[list[SealedEntry]]:
    """As many as one transaction takes, in order."""
    batch: list[SealedEntry] = []
    size = 0
    for each in entries:
        if batch and (len(batch) == APPEND_ENTRIES or size + len(each.sealed) > APPEND_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += len(each.sealed)
    if batch:
        yield batch

"""The sealed log of a node alone moves into etcd: its newest snapshot, every entry behind it, the keyset. Bytes as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from piccolod import clock
from piccolod.errors import Conflict, StoreUnavailable
from piccolod.leadership import keys
from piccolod.protocol.base import Reply, Request
from piccolod.protocol.log import APPEND_BYTES, APPEND_ENTRIES, ExportChunk, Exported, ExportLog, SealedEntry, SnapshotInfo
from services.consensus import seed, wire
from services.consensus.cluster_records import HeadRecord
from services.consensus.etcd.client import Client
from services.consensus.etcd.transaction import Put, Range, Transaction

_PUT_S: Final = 5.0

_WRITABLE_S: Final = 15.0
_LOOK_S: Final = 0.1
_LOOK_ONCE_S: Final = 0.5


class Ask(Protocol):
    """A command to persistence: ExportLog, ExportChunk. Raises what it answers."""

    async def __call__(self, request: Request[Reply]) -> Reply: ...


class Move:
    """Of one log into an etcd that nobody else writes yet."""

    def __init__(self, client: Client, prefix: str, gen: int, ask: Ask) -> None:
        self._client = client
        self._prefix = prefix
        self._gen = gen
        self._ask = ask
        self._rev = 0
        self._digest: bytes | None = None  # of the last entry that was moved; a snapshot stands for one that was not
        self._keyset = b""

    async def begin(self) -> None:
        """All that there is now. What is written meanwhile comes with `finish`."""
        first = await self._ask(ExportLog(after=0))
        if first.snapshot is not None:
            await self._move_snapshot(first.snapshot)
        await self._move(first)

    async def follow(self, hold_s: float) -> None:
        """What has come since, and from now on writes are held back for `hold_s`."""
        await self._move(await self._ask(ExportLog(after=self._rev, hold_s=hold_s)))

    async def finish(self, hold_s: float) -> None:
        """The rest, the keyset and the head, once no term is open here. Raises Conflict unless etcd has just what is here."""
        last = await self._move(await self._ask(ExportLog(after=self._rev, hold_s=hold_s)))
        if self._rev != last.head_rev or self._digest not in (None, last.head_digest):
            raise Conflict(f"the log in etcd ends at rev {self._rev}, the one here at {last.head_rev}", hint="try again")
        if last.gen > self._gen:
            raise Conflict(f"the log was written under another gen meanwhile: {last.gen}, not {self._gen}", hint="try again")
        self._digest = last.head_digest
        self._keyset = last.keyset
        head = HeadRecord(last.head_rev, last.head_digest, self._gen)
        puts = (Put(self._prefix + keys.KEYSET, self._keyset), Put(self._prefix + keys.KERNEL_HEAD, wire.encode(head)))
        await self._client.transact(Transaction((), puts), _PUT_S)

    async def check(self, hold_s: float) -> None:
        """After `finish`. Raises Conflict when what is here now is not what was moved."""
        here = await self._ask(ExportLog(after=self._rev, limit=1, hold_s=hold_s))
        if (here.head_rev, here.head_digest, here.keyset) != (self._rev, self._digest, self._keyset):
            raise Conflict(
                f"the log or the keyset has changed while it was moved: etcd has rev {self._rev}, this node {here.head_rev}",
                hint="try again",
            )

    async def _move_snapshot(self, info: SnapshotInfo) -> None:
        """A chunk at a time: neither side of the bus has to send the whole."""
        for index in range(info.chunks):
            chunk = await self._ask(ExportChunk(rev=info.rev, index=index))
            await seed.put_chunk(self._client, self._prefix, info.rev, index, chunk.data)
        await seed.put_snapshot_record(self._client, self._prefix, info.rev, info.chunks, info.size_bytes)
        self._rev = info.rev

    async def _move(self, exported: Exported) -> Exported:
        """These entries and all after them. Returns the export that had none left."""
        while True:
            for batch in batches(exported.entries):
                await seed.put_log(self._client, self._prefix, self._gen, batch)
                self._rev, self._digest = batch[-1].rev, batch[-1].digest
            if not exported.entries or self._rev >= exported.head_rev:
                return exported
            exported = await self._ask(ExportLog(after=self._rev))


async def writable(client: Client, prefix: str) -> None:
    """Returns once an etcd that has just begun leads itself, so that a write goes through. Raises StoreUnavailable."""
    give_up_at = clock.now() + _WRITABLE_S
    while True:
        try:
            await client.find(Range(prefix + keys.GEN), _LOOK_ONCE_S)
            return
        except StoreUnavailable:
            if clock.now() > give_up_at:
                raise
        await asyncio.sleep(_LOOK_S)


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

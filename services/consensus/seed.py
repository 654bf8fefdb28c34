"""The first records of a cluster, written before anybody leads in it: for `cluster init`, and `node/<name>` for who joins.

`put_terms` moves the terms of a node alone into a fresh etcd *under the tokens that they have*, so that consensus resumes them
there and nothing that runs has to stop: a token is a revision, and the revisions of an empty etcd are free to be used up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from piccolod.errors import Conflict
from piccolod.leadership import keys
from piccolod.leadership.events import Memory
from piccolod.leadership.keys import EpochRecord, GenRecord, LeadRecord, SessionRecord
from piccolod.leadership.page import Page
from piccolod.leadership.records import TermRecord
from piccolod.leadership.timing import Timing
from piccolod.protocol.cluster import KnownMember
from piccolod.protocol.log import SealedEntry
from services.consensus import wire
from services.consensus.cluster_records import (
    NODE,
    SNAPSHOT,
    HeadRecord,
    SnapshotRecord,
    chunk_key,
    log_key,
)
from services.consensus.etcd.client import Client
from services.consensus.etcd.transaction import MOST_OPERATIONS, Put, Range, Transaction, absent

_WITHIN_S: Final = 5.0
_FILL: Final = "fill"
_FILL_AT_ONCE: Final = 64


async def put_gen(client: Client, prefix: str, gen: int) -> GenRecord:
    """Which life of the store begins, and the etcd that it lives in. Raises Conflict where one has begun."""
    _, cluster_id = await _now(client, prefix)
    record = GenRecord(gen, cluster_id)
    key = prefix + keys.GEN
    done = await client.transact(Transaction((absent(key),), (Put(key, wire.encode(record)),)), _WITHIN_S)
    if not done.succeeded:
        raise Conflict("this etcd holds a cluster already", hint="wipe it, or join it")
    return record


async def put_node(client: Client, prefix: str, name: str, record: KnownMember) -> None:
    """Where a node is found; consensus of the others names it as a taker from now on."""
    await client.transact(Transaction((), (Put(prefix + NODE + name, wire.encode(record)),)), _WITHIN_S)


async def put_released(client: Client, prefix: str, epochs: Mapping[str, int], node: str, span_s: float) -> None:
    """Every resource as nobody's, at home on `node`: its next term has the next epoch (a router takes no lower one), and an app
    stays where it was."""
    puts = [
        Put(f"{prefix}{keys.EPOCH}{resource}", wire.encode(EpochRecord(epoch, node, 0, span_s, held=False)))
        for resource, epoch in sorted(epochs.items())
    ]
    for at in range(0, len(puts), MOST_OPERATIONS):
        await client.transact(Transaction((), tuple(puts[at : at + MOST_OPERATIONS])), _WITHIN_S)


async def put_log(client: Client, prefix: str, gen: int, entries: Sequence[SealedEntry]) -> None:
    """Up to APPEND_ENTRIES and APPEND_BYTES of them in order, and the head after the last."""
    puts = [Put(prefix + log_key(entry.rev), wire.encode(entry)) for entry in entries]
    head = HeadRecord(entries[-1].rev, entries[-1].digest, gen)
    await client.transact(Transaction((), (*puts, Put(prefix + keys.KERNEL_HEAD, wire.encode(head)))), _WITHIN_S)


async def put_chunk(client: Client, prefix: str, rev: int, index: int, chunk: bytes) -> None:
    """Of one encoded `SealedEntry`: CHUNK_BYTES, the last one what is left."""
    await client.transact(Transaction((), (Put(prefix + chunk_key(rev, index), chunk),)), _WITHIN_S)


async def put_snapshot_record(client: Client, prefix: str, rev: int, chunks: int, size_bytes: int) -> None:
    """After all of its chunks: it makes them count."""
    record = SnapshotRecord(rev, chunks, size_bytes)
    await client.transact(Transaction((), (Put(prefix + SNAPSHOT, wire.encode(record)),)), _WITHIN_S)


async def put_terms(
    client: Client, prefix: str, node: str, address: str, page: Page, records: Sequence[TermRecord], timing: Timing
) -> None:
    """The session and the terms of the page at the very revisions that are their sid and tokens on it.

    Raises Conflict when etcd is beyond the first of them already: then nothing was written, and all that runs must stop.
    """
    session = SessionRecord(0, page.boot_id, 0, timing.span_s)
    wanted: dict[int, list[Put]] = {page.sid: [Put(prefix + keys.SESSION + node, wire.encode(session))]}
    about = {record.resource: record for record in records}
    for resource, term in page.terms.items():
        epoch = EpochRecord(term.epoch, node, page.sid, timing.span_s, held=True)
        lead = LeadRecord(node, term.epoch, address, about[resource].reason, about[resource].since_ms)
        wanted[term.token] = [
            Put(prefix + keys.EPOCH + resource, wire.encode(epoch)), Put(prefix + keys.LEAD + resource, wire.encode(lead)),
        ]  # fmt: skip
    revision, _ = await _now(client, prefix)
    if revision >= min(wanted):
        raise Conflict(f"etcd is at revision {revision} already, and the session began at {page.sid}")
    for at, puts in sorted(wanted.items()):
        await _fill(client, prefix, revision, at - 1)
        done = await client.transact(Transaction((), tuple(puts)), _WITHIN_S)
        revision = done.revision
        if revision != at:
            raise Conflict(f"somebody else writes to this etcd: {revision} instead of {at}")


async def memory_of(client: Client, prefix: str, gen: int) -> Memory:
    """What `seen.json` has to say for the first start in the cluster, so that the page's session is resumed."""
    revision, cluster_id = await _now(client, prefix)
    return Memory(cluster_id, revision, gen)


async def _fill(client: Client, prefix: str, revision: int, to: int) -> None:
    """Uses revisions up; each transaction is one."""
    write = Transaction((), (Put(prefix + _FILL, b""),))
    while revision < to:
        count = min(_FILL_AT_ONCE, to - revision)
        await asyncio.gather(*(client.transact(write, _WITHIN_S) for _ in range(count)))
        revision += count


async def _now(client: Client, prefix: str) -> tuple[int, int]:
    result = await client.look((Range(prefix + keys.GEN),), _WITHIN_S)
    return result.revision, result.header.cluster_id

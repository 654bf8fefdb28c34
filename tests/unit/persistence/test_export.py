"""The log of a node alone on its way into etcd: all of it, verified, and nothing that comes meanwhile is missed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from piccolod.bus.envelope import MAX_MESSAGE_BYTES
from piccolod.errors import (
    Busy,
    Invalid,
    Locked,
    NotFound,
    PiccoloError,
    StoreCorrupt,
    StoreUnavailable,
    TooLarge,
)
from piccolod.protocol.log import Exported, ExportLog, SealedEntry
from piccolod.protocol.persistence import Lock, Setup
from services.persistence import committer, export
from services.persistence import keyset as keysets
from services.persistence.catch_up import as_sealed, verified
from services.persistence.chain import Chain, check_snapshot
from services.persistence.chunks import Chunks
from services.persistence.entry import Sealed
from services.persistence.ledger import Batch, Item
from services.persistence.store import Store

from .conftest import CHEAP, CLUSTER, Bench
from .house import until
from .town import PASSWORD, Town, in_town

KEYSET = keysets.create(CLUSTER, "a password of tests", CHEAP)[0]


def exported(bench: Bench, after: int, limit: int = 256) -> Exported:
    return whole(bench, after, limit)[0]


def whole(bench: Bench, after: int = 0, limit: int = 256) -> tuple[Exported, bytes]:
    """With the snapshot."""
    at = export.position(bench.store, after, bench.db)
    return export.export(bench.db, CLUSTER, bench.key, KEYSET, at, after, limit)


def decoded(raw: bytes) -> Sealed:
    return as_sealed(msgspec.msgpack.decode(raw, type=SealedEntry))


def moved(bench: Bench, limit: int = 256) -> tuple[Chain, int]:
    """As etcd gets it: a chain over the snapshot and every entry, and how many entries that were."""
    chain, count, after = Chain(CLUSTER), 0, 0
    while True:
        part, raw = whole(bench, after, limit)
        if after == 0 and part.snapshot is not None:
            assert part.snapshot.rev == decoded(raw).rev
            chain.stand_on(check_snapshot(decoded(raw), CLUSTER))
        items, broken = verified(chain, bench.key, [as_sealed(entry) for entry in part.entries])
        assert broken is None
        count += len(items)
        after = chain.rev
        if after == part.head_rev:
            assert chain.digest == part.head_digest
            return chain, count


def test_a_short_log_goes_whole_with_the_keyset(bench: Bench) -> None:
    bench.grow(10)
    part = exported(bench, 0)
    assert (part.cluster, part.head_rev, part.snapshot) == (CLUSTER, 10, None)
    assert [entry.rev for entry in part.entries] == list(range(1, 11))
    assert keysets.decode(part.keyset) == KEYSET
    assert keysets.decode(exported(bench, 4, 2).keyset) == KEYSET
    assert [entry.rev for entry in exported(bench, 4, 2).entries] == [5, 6]
    assert moved(bench, limit=3)[1] == 10


def test_a_long_log_goes_as_its_newest_snapshot_and_the_tail(bench: Bench) -> None:
    bench.grow(2350)
    part = exported(bench, 0)
    assert part.snapshot is not None and part.snapshot.rev >= 2000
    assert part.entries[0].rev == part.snapshot.rev + 1
    chain, count = moved(bench)
    assert (chain.rev, count) == (2350, 2350 - part.snapshot.rev)


def test_a_tail_that_etcd_would_not_keep_gives_way_to_a_fresh_snapshot(bench: Bench) -> None:
    for number in range(30):
        bench.put("large", str(number % 10) * 300_000)
    part = exported(bench, 0)
    assert part.snapshot is not None and part.snapshot.rev == 30
    assert part.entries == ()
    assert moved(bench)[0].rev == 30


def test_a_snapshot_that_no_message_holds_goes_in_chunks(bench: Bench) -> None:
    for number in range(30):
        bench.put(f"large{number}", str(number % 10) * 300_000)

    async def taken() -> bytes:
        part, raw = whole(bench)
        assert part.snapshot is not None and part.entries == () and len(msgspec.msgpack.encode(part)) < MAX_MESSAGE_BYTES
        assert part.snapshot.size_bytes == len(raw) > 2 * MAX_MESSAGE_BYTES
        chunks = Chunks()
        chunks.keep(30, raw)
        for rev, index in ((29, 0), (30, -1), (30, part.snapshot.chunks)):
            with pytest.raises(NotFound):
                chunks.take(rev, index)
        found = b"".join(chunks.take(30, index) for index in range(part.snapshot.chunks))
        with pytest.raises(NotFound):
            chunks.take(30, 0)  # the memory of a node alone is not kept for that
        return found

    assert check_snapshot(decoded(asyncio.run(taken())), CLUSTER).rev == 30


def test_a_store_that_etcd_could_not_hold_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "SNAPSHOT_BYTES", 1024)
    bench.grow(1000)
    with pytest.raises(TooLarge):
        exported(bench, 0)


def test_what_follows_a_snapshot_that_stands_for_a_gap_can_be_asked_for(bench: Bench) -> None:
    bench.grow(1000)
    snapshot = exported(bench, 0).snapshot
    assert snapshot is not None
    assert exported(bench, snapshot.rev).entries == ()
    bench.put("a", 1)
    assert [entry.rev for entry in exported(bench, snapshot.rev).entries] == [1001]


def test_an_empty_log_and_a_position_that_is_not_in_it(bench: Bench) -> None:
    part = exported(bench, 0)
    assert (part.head_rev, part.entries, part.snapshot) == (0, (), None)
    for after, limit in ((1, 1), (-1, 1), (0, 0), (0, 10_000)):
        with pytest.raises(Invalid):
            exported(bench, after, limit)


def test_a_damaged_entry_is_not_exported(bench: Bench) -> None:
    bench.grow(10)
    assert bench.store._log is not None
    bench.store._log._db.execute("UPDATE entry SET sealed = zeroblob(40) WHERE rev = 7")
    with pytest.raises(StoreCorrupt):
        exported(bench, 0)
    bench.store._log._db.execute("DELETE FROM entry WHERE rev = 7")
    with pytest.raises(StoreCorrupt):
        exported(bench, 0)


def test_nothing_is_written_between_the_last_export_and_the_end_of_the_hold(tmp_path: Path, cheap_passwords: None) -> None:
    @in_town
    async def test(town: Town) -> None:
        node = town.node("n1")
        await node.begin()
        with pytest.raises(Locked):
            await node.ask(ExportLog(after=0), caller="consensus")
        await node.ask(Setup(password=PASSWORD))
        writing = [asyncio.ensure_future(node.put(f"a{number}", number)) for number in range(20)]
        await asyncio.sleep(0)
        last: Exported = await node.ask(ExportLog(after=0, hold_s=2.0), caller="consensus")
        late = asyncio.ensure_future(node.put("late", 1))
        held_at = asyncio.get_running_loop().time()
        again: Exported = await node.ask(ExportLog(after=last.head_rev), caller="consensus")
        assert (again.head_rev, again.entries) == (last.head_rev, ())
        done = [each for each in writing if each.done()]
        assert len(done) == last.head_rev - 1, "what was acknowledged is in it"
        assert await late == 22, "and what was parked is made after all"
        assert asyncio.get_running_loop().time() - held_at > 0.3
        await asyncio.gather(*writing)
        await node.ask(Lock())
        await until(lambda: node.module.stopping.is_set(), "it wants to start clean")

    test(tmp_path, cheap_passwords)


def test_the_last_export_waits_for_a_write_that_a_slow_disk_has_not_ended(
    tmp_path: Path, cheap_passwords: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be acknowledged afterwards, and be in no cluster."""
    synced, begun = threading.Event(), threading.Event()
    real = Store.append

    def slow(store: Store, batch: Batch, guard: Callable[[], None] = lambda: None) -> None:
        def before_commit() -> None:
            guard()
            begun.set()
            synced.wait(10)

        real(store, batch, before_commit)

    @in_town
    async def test(town: Town) -> None:
        node = town.node("n1")
        await node.begin()
        await node.ask(Setup(password=PASSWORD))
        await until(lambda: node.service._gate.holds("kernel"), "it leads")
        monkeypatch.setattr(Store, "append", slow)
        writing = asyncio.ensure_future(node.put("slow", 1))
        await until(begun.is_set, "the write is on its way")
        exporting = asyncio.ensure_future(node.ask(ExportLog(after=0, hold_s=0.5), caller="consensus"))
        await asyncio.wait([exporting], timeout=committer.DRAIN_WAIT_S + 0.3)
        synced.set()
        last: Exported = await exporting
        assert await writing == last.head_rev
        assert last.entries[-1].rev == last.head_rev

    try:
        test(tmp_path, cheap_passwords)
    finally:
        synced.set()


def test_a_write_in_doubt_is_no_end_of_a_log_and_once_found_it_is_in_the_export(
    tmp_path: Path, cheap_passwords: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_append, real_settle = Store.append, Store.settle
    sick = True

    def durable_but_not_synced(store: Store, batch: Batch, guard: Callable[[], None] = lambda: None) -> None:
        real_append(store, batch, guard)
        if sick:
            store.in_doubt = True
            raise StoreUnavailable("the sync failed")

    def settle(store: Store) -> list[Item]:
        if sick:
            raise StoreUnavailable("the disk does not answer")
        return real_settle(store)

    @in_town
    async def test(town: Town) -> None:
        nonlocal sick
        sick = False
        node = town.node("n1")
        await node.begin()
        await node.ask(Setup(password=PASSWORD))
        await node.put("a", 1)
        before = (await node.revision()).rev
        sick = True
        monkeypatch.setattr(Store, "append", durable_but_not_synced)
        monkeypatch.setattr(Store, "settle", settle)
        with pytest.raises(PiccoloError):
            await node.put("b", 1)
        monkeypatch.setattr(committer, "QUIET_WAIT_S", 0.05)
        with pytest.raises(Busy, match="in doubt"):
            await node.ask(ExportLog(after=0, hold_s=0.5), caller="consensus")
        monkeypatch.setattr(committer, "QUIET_WAIT_S", 10.0)
        sick = False
        last: Exported = await node.ask(ExportLog(after=0, hold_s=0.5), caller="consensus")
        assert last.head_rev == before + 1

    test(tmp_path, cheap_passwords)

"""The sealed log on a real disk: what is acknowledged is there, what is refused is not, and nothing rests in clear."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import msgspec
import pytest

from piccolod.errors import Conflict, Invalid, NotLeader, StoreCorrupt, TermOver, TooLarge
from services.persistence.entry import ENTRY_LIMIT_BYTES, GENESIS, entry_header
from services.persistence.ledger import Batch, Write
from services.persistence.log import SNAPSHOTS_KEPT, LogReader
from services.persistence.secret import SecretKey
from services.persistence.state import delete, put
from services.persistence.store import Store
from services.persistence.verify import head_path, survey

from .conftest import CLUSTER, Bench


def entries(db: Path) -> list[object]:
    reader = LogReader(db)
    try:
        return list(reader.entries())
    finally:
        reader.close()


def test_every_rev_survives_a_reopen_with_its_documents_and_generations(bench: Bench) -> None:
    for number in range(5):
        assert bench.put("hello", {"v": number}) == number + 1
    bench.put("other", {"v": 1})
    bench.write(Write([delete("apps", "other")], {}, "admin", "", 1))
    before = bench.documents()
    bench.reopen()
    assert bench.documents() == before
    assert bench.store.state.rev == 7


def test_headers_are_plain_and_chained_and_bodies_are_not_plain(bench: Bench) -> None:
    for number in range(3):
        bench.put("hello", {"secret": "open-sesame", "v": number}, idem=f"idem-{number}")
    parent = GENESIS
    for rev, item in enumerate(entries(bench.db), 1):
        header = entry_header(item)  # type: ignore[arg-type]
        assert (header.cluster, header.gen, header.rev, header.epoch) == (CLUSTER, 1, rev, 1)
        assert (header.author, header.idem, header.parent) == ("admin", f"idem-{rev - 1}", parent)
        parent = item.digest  # type: ignore[attr-defined]
        assert parent == hashlib.sha256(item.header + item.nonce + item.sealed).digest()  # type: ignore[attr-defined]
    assert parent == bench.store.state.digest


def test_nothing_of_a_document_is_in_clear_under_the_store_folder(bench: Bench) -> None:
    bench.put("app-name-that-is-sealed", {"password": "correct-horse", "blob": "battery-staple" * 1000})
    bench.store.keep_snapshot(bench.store.snapshot(1))
    for closed in (False, True):
        if closed:
            bench.close()
        content = b"".join(path.read_bytes() for path in bench.db.parent.iterdir())
        for word in (b"app-name-that-is-sealed", b"correct-horse", b"battery-staple", bench.key.raw()):
            assert word not in content


def test_every_seal_has_its_own_nonce(bench: Bench) -> None:
    for number in range(200):
        bench.put("hello", {"v": number})
    nonces = [item.nonce for item in entries(bench.db)]  # type: ignore[attr-defined]
    assert len(set(nonces)) == 200
    assert {len(nonce) for nonce in nonces} == {12}


def test_a_write_that_changes_nothing_makes_no_rev(bench: Bench) -> None:
    bench.put("hello", {"v": 1})
    assert bench.put("hello", {"v": 1}) == 1
    assert bench.write(Write([], {}, "admin", "", 1)) == 1
    assert len(entries(bench.db)) == 1


def test_a_retry_after_a_restart_gets_the_first_rev(bench: Bench) -> None:
    first = bench.put("hello", {"v": 1}, idem="k")
    bench.put("hello", {"v": 2})
    bench.reopen()
    assert bench.put("hello", {"v": 1}, idem="k") == first
    bench.grow(1200)
    bench.reopen()
    assert bench.store.snapshot_rev > 0, "the key must also survive in a snapshot"
    assert bench.put("hello", {"v": 1}, idem="k") == first


def test_an_entry_at_the_limit_is_kept_and_one_byte_more_is_refused_alone(bench: Bench) -> None:
    low, high = 0, ENTRY_LIMIT_BYTES
    while high - low > 1:
        size = (low + high) // 2
        try:
            Batch(bench.store, 1, 1).add(Write([put("apps", "big", {"x": "x" * size})], {}, "admin", "", 1))
            low = size
        except TooLarge:
            high = size
    assert ENTRY_LIMIT_BYTES - low < 400, "the limit is 384 KiB with header, nonce and tag"
    batch = Batch(bench.store, 1, 1)
    batch.add(Write([put("apps", "small", {"x": 1})], {}, "admin", "", 1))
    with pytest.raises(TooLarge):
        batch.add(Write([put("apps", "big", {"x": "x" * high})], {}, "admin", "", 1))
    batch.add(Write([put("apps", "big", {"x": "x" * low})], {}, "admin", "", 1))
    bench.store.append(batch)
    bench.store.fold(batch.items)
    bench.reopen()
    assert bench.store.state.rev == 2


def test_several_writers_share_a_transaction_and_no_rev(bench: Bench) -> None:
    batch = Batch(bench.store, 1, 1)
    revs = [batch.add(Write([put("apps", f"a{n}", {"v": n})], {}, "admin", f"k{n}", 1)) for n in range(16)]
    with pytest.raises(Conflict):
        batch.add(Write([put("apps", "a0", {"v": 9})], {("apps", "a0"): 0}, "admin", "", 1))
    assert batch.add(Write([put("apps", "a3", {"v": 3})], {}, "admin", "k3", 1)) == 4
    bench.store.append(batch)
    assert bench.store.state.rev == 0, "nothing is visible before it is folded"
    assert [folded.rev for folded in bench.store.fold(batch.items)] == revs == list(range(1, 17))


def test_a_gate_that_shuts_at_the_last_moment_refuses_the_write_whole(bench: Bench) -> None:
    bench.put("hello", {"v": 1})
    batch = Batch(bench.store, 1, 1)
    batch.add(Write([put("apps", "hello", {"v": 2})], {}, "admin", "", 1))

    def shut() -> None:
        raise TermOver("kernel", "the deadline has passed")

    with pytest.raises(TermOver):
        bench.store.append(batch, shut)
    assert bench.put("hello", {"v": 3}) == 2
    bench.reopen()
    assert bench.store.state.rev == 2


def test_a_term_older_than_the_last_writer_is_refused(bench: Bench) -> None:
    bench.write(Write([put("apps", "a", {"v": 1})], {}, "admin", "", 1), epoch=5)
    bench.reopen()
    with pytest.raises(NotLeader):
        bench.write(Write([put("apps", "a", {"v": 2})], {}, "admin", "", 1), epoch=4)
    assert bench.write(Write([put("apps", "a", {"v": 2})], {}, "admin", "", 1), epoch=5) == 2
    assert bench.write(Write([put("apps", "a", {"v": 3})], {}, "admin", "", 1), epoch=1, gen=2) == 3


@pytest.mark.parametrize("label", ["x" * 129, "a\nb", "\ud800"])
def test_labels_that_would_spoil_the_plain_header_are_refused(bench: Bench, label: str) -> None:
    for author, idem in ((label, ""), ("admin", label)):
        with pytest.raises(Invalid):
            bench.write(Write([put("apps", "a", {"v": 1})], {}, author, idem, 1))


def test_snapshots_bound_the_replay_and_only_the_newest_are_kept(bench: Bench) -> None:
    bench.grow(4700)
    before = bench.documents()
    bench.reopen()
    assert bench.store.snapshot_rev == 4000
    assert bench.documents() == before
    reader = LogReader(bench.db)
    assert [item.rev for item in reader.snapshots()] == [4000, 3000, 2000][:SNAPSHOTS_KEPT]
    reader.close()
    assert survey(bench.db, CLUSTER, bench.key).ok


def test_the_wrong_key_is_found_and_named(bench: Bench) -> None:
    bench.put("hello", {"v": 1})
    with pytest.raises(StoreCorrupt, match="entry 1 cannot be opened with this key"):
        bench.reopen(SecretKey.random())
    assert not survey(bench.db, CLUSTER, SecretKey.random()).ok
    assert survey(bench.db, CLUSTER, bench.key).ok


def test_the_log_of_another_cluster_is_refused_by_name(bench: Bench) -> None:
    bench.close()
    with pytest.raises(StoreCorrupt, match="is the log of cluster"):
        Store(bench.db, "another", bench.key)


def test_the_file_is_for_its_owner_alone(bench: Bench) -> None:
    bench.put("hello", {"v": 1})
    assert {oct(path.stat().st_mode & 0o777) for path in bench.db.parent.iterdir()} == {"0o600"}


def test_a_check_beside_a_writer_sees_no_damage_where_there_is_none(bench: Bench) -> None:
    bench.grow(500)
    stop = threading.Event()
    problems: list[str] = []

    def check() -> None:
        while not stop.is_set():
            found = survey(bench.db, CLUSTER, bench.key)
            if not found.ok:
                problems.append(found.problem)

    checker = threading.Thread(target=check)
    checker.start()
    try:
        for number in range(400):
            bench.put("hello", {"v": number})
    finally:
        stop.set()
        checker.join()
    assert problems == []


def test_looking_at_a_log_changes_no_byte_of_it(bench: Bench) -> None:
    """The write-ahead log of a killed process is only readable as long as nobody moves it into the file."""
    bench.grow(50)
    pid = os.fork()
    if pid == 0:
        # A child that dies without closing anything leaves the files as a kill -9 does.
        os._exit(0)
    os.waitpid(pid, 0)
    wal = Path(f"{bench.db}-wal")
    before = (bench.db.read_bytes(), wal.read_bytes())
    survey(bench.db, CLUSTER, bench.key)
    assert (bench.db.read_bytes(), wal.read_bytes()) == before


def test_the_mark_follows_each_commit(bench: Bench) -> None:
    bench.put("hello", {"v": 1})
    mark = head_path(bench.db).read_bytes()
    bench.put("hello", {"v": 2})
    assert head_path(bench.db).read_bytes() != mark


def test_a_document_is_read_as_it_was_written(bench: Bench) -> None:
    document = {"text": "é", "n": [1, 2.5, None, True], "m": {"k": b"\x00\xff"}, "big": 2**64 - 1}
    bench.put("hello", document)
    bench.reopen()
    found = bench.store.state.get("apps", "hello")
    assert found is not None
    assert msgspec.msgpack.decode(found.body) == document

"""Damage to the files of the store is found, named, and loses nothing that can be saved. Nothing is ever deleted."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from piccolod.errors import StoreCorrupt
from services.persistence.entry import entry_header
from services.persistence.log import LogReader
from services.persistence.repair import finish, rebuild, salvage
from services.persistence.secret import SecretKey
from services.persistence.store import Store
from services.persistence.verify import head_path, load, survey

from .conftest import CLUSTER, Bench, used

Flip = Callable[..., None]


def wal(db: Path) -> Path:
    return Path(f"{db}-wal")


def freeze(bench: Bench, into: Path) -> Path:
    """The files as a kill -9 leaves them: copied under the feet of the open store, write-ahead log included."""
    into.mkdir()
    for path in bench.db.parent.iterdir():
        if not path.name.endswith("-shm"):
            shutil.copy(path, into / path.name)
    return into / bench.db.name


def contents(folder: Path) -> dict[str, bytes]:
    """What matters on the disk: the shared memory file is rebuilt each time, and an empty write-ahead log is none."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}
    return {name: content for name, content in files.items() if content or not name.endswith("-wal")}


def assert_damaged(db: Path, bench: Bench, match: str = "") -> None:
    """Found by the check with and without the key, and by the unlock; and looking changed nothing."""
    before = contents(db.parent)
    for key in (None, bench.key):
        found = survey(db, CLUSTER, key)
        assert not found.ok
        assert str(db) in found.problem
        assert match in found.problem
    assert contents(db.parent) == before


def repair(db: Path, bench: Bench, *, with_key: bool = True) -> tuple[Store, int]:
    saved = salvage(db, CLUSTER, bench.key if with_key else None)
    before = db.read_bytes() if db.exists() else None
    aside = rebuild(db, saved)
    if before is not None:
        assert aside is not None
        assert aside.name.startswith("control.db.corrupt-")
        assert aside.read_bytes() == before, "the damaged file is kept as it was"
    assert survey(db, CLUSTER, bench.key).ok
    return Store(db, CLUSTER, bench.key), saved.lost


@pytest.mark.parametrize("column", ["header", "nonce", "sealed", "digest"])
@pytest.mark.parametrize("rev", [1, 7, 20])
def test_a_flipped_bit_in_any_part_of_any_entry_is_found_and_named(bench: Bench, tmp_path: Path, column: str, rev: int) -> None:
    bench.grow(20)
    bench.close()
    db = sqlite3.connect(bench.db)
    (value,) = db.execute(f"SELECT {column} FROM entry WHERE rev = ?", (rev,)).fetchone()
    for at in (0, len(value) // 2, len(value) - 1):
        broken = bytearray(value)
        broken[at] ^= 1
        db.execute(f"UPDATE entry SET {column} = ? WHERE rev = ?", (bytes(broken), rev))
        db.commit()
        assert_damaged(bench.db, bench, f"entry {rev} ")
        assert survey(bench.db, CLUSTER).good_rev == rev - 1
        with pytest.raises(StoreCorrupt, match=f"entry {rev} "):
            load(bench.db, CLUSTER, bench.key)
    db.close()
    store, lost = repair(bench.db, bench)
    assert (store.state.rev, lost) == (rev - 1, 20 - rev + 1)
    store.close()


def test_an_entry_that_was_made_again_with_a_right_digest_is_found_by_its_seal(bench: Bench) -> None:
    """Who can write the file can compute digests; without the key nobody can compute a seal."""
    import hashlib

    bench.grow(3)
    bench.close()
    db = sqlite3.connect(bench.db)
    header, nonce, sealed = db.execute("SELECT header, nonce, sealed FROM entry WHERE rev = 3").fetchone()
    forged = bytes([sealed[0] ^ 1]) + sealed[1:]
    db.execute(
        "UPDATE entry SET sealed = ?, digest = ? WHERE rev = 3", (forged, hashlib.sha256(header + nonce + forged).digest())
    )
    db.commit()
    db.close()
    head_path(bench.db).unlink()
    assert survey(bench.db, CLUSTER).ok, "the chain alone cannot tell"
    assert "entry 3 cannot be opened" in survey(bench.db, CLUSTER, bench.key).problem
    with pytest.raises(StoreCorrupt, match="entry 3 cannot be opened"):
        load(bench.db, CLUSTER, bench.key)


@pytest.mark.parametrize("what", ["delete", "swap", "truncate", "replay"])
def test_a_missing_swapped_cut_or_repeated_entry_is_found(bench: Bench, what: str) -> None:
    bench.grow(10)
    bench.close()
    db = sqlite3.connect(bench.db)
    if what == "delete":
        db.execute("DELETE FROM entry WHERE rev = 5")
    elif what == "swap":
        db.execute("UPDATE entry SET rev = -1 WHERE rev = 5")
        db.execute("UPDATE entry SET rev = 5 WHERE rev = 6")
        db.execute("UPDATE entry SET rev = 6 WHERE rev = -1")
    elif what == "truncate":
        db.execute("DELETE FROM entry WHERE rev > 4")
    else:
        db.execute("INSERT INTO entry SELECT 11, header, nonce, sealed, digest FROM entry WHERE rev = 10")
    db.commit()
    db.close()
    assert_damaged(bench.db, bench)
    store, _ = repair(bench.db, bench)
    assert store.state.rev == {"delete": 4, "swap": 4, "truncate": 4, "replay": 10}[what] or store.state.rev == 10
    store.close()


def test_a_flip_anywhere_in_the_files_is_found_or_harmless_and_repair_saves_every_entry_before_it(
    bench: Bench, tmp_path: Path, flip: Flip
) -> None:
    """200 random flips in file and write-ahead log: never a wrong state, never a state that is silently shorter."""
    bench.grow(120, size=300)
    bench.store._log.settle()  # type: ignore[union-attr]
    bench.grow(40, size=3000)
    truth, rev = bench.documents(), bench.store.state.rev
    source = freeze(bench, tmp_path / "frozen")
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    found = 0
    for number in range(200):
        folder = tmp_path / f"case{number}"
        shutil.copytree(source.parent, folder)
        db = folder / source.name
        victim = rng.choice([db, wal(db)])
        offset = rng.randrange(used(victim))
        flip(victim, offset, 1 << rng.randrange(8))
        where = f"seed {seed}, case {number}, {victim.name} at {offset}"
        result = survey(db, CLUSTER, bench.key)
        if result.ok:
            loaded = load(db, CLUSTER, bench.key)
            assert loaded.state.rev == rev, where
            assert {(c, i): (d.generation, d.body) for c, i, d in loaded.state.documents()} == truth, where
        else:
            found += 1
            saved = salvage(db, CLUSTER, bench.key)
            assert saved.rev >= result.good_rev, where
            rebuild(db, saved)
            again = survey(db, CLUSTER, bench.key)
            assert again.ok, f"{where}: {again.problem}"
        shutil.rmtree(folder)
    assert found > 60, f"seed {seed}: most bytes matter, {found} of 200 were found"


@pytest.mark.parametrize("keep", [0, 1, 99, 100, 4096, 5000, 8192, -1, -4096])
def test_a_truncated_file_is_found_and_what_is_left_of_it_is_saved(bench: Bench, keep: int) -> None:
    bench.grow(60, size=200)
    bench.close()
    content = bench.db.read_bytes()
    bench.db.write_bytes(content[:keep])
    assert_damaged(bench.db, bench)
    saved = salvage(bench.db, CLUSTER, bench.key)
    store, lost = repair(bench.db, bench)
    assert store.state.rev + lost == 60
    assert store.state.rev == saved.rev
    assert store.meta.losses == (1 if lost else 0)
    store.close()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_write_ahead_log_is_found_though_sqlite_takes_it_for_shorter(
    bench: Bench, tmp_path: Path, share: float
) -> None:
    for number in range(30):
        bench.put("hello", {"v": number})
    db = freeze(bench, tmp_path / "frozen")
    content = wal(db).read_bytes()
    wal(db).write_bytes(content[: int(used(wal(db)) * share)])
    assert_damaged(db, bench)


def test_a_lost_write_ahead_log_is_found(bench: Bench, tmp_path: Path) -> None:
    bench.grow(10)
    bench.store._log.settle()  # type: ignore[union-attr]
    for number in range(5):
        bench.put("hello", {"v": number})
    db = freeze(bench, tmp_path / "frozen")
    wal(db).unlink()
    assert_damaged(db, bench, "entries 11 to 15 are missing")
    store, lost = repair(db, bench)
    assert (store.state.rev, lost) == (10, 5)
    bench.store = store
    bench.put("hello", {"v": "again"})
    newest = list(store._log.entries(after=10))  # type: ignore[union-attr]
    assert entry_header(newest[0]).gen == 2, "revs that were lost are not made again in the same generation"


def test_a_flip_in_an_early_frame_of_the_write_ahead_log_loses_nothing_of_the_later_ones(
    bench: Bench, tmp_path: Path, flip: Flip
) -> None:
    """SQLite ends the log at the damaged frame; the frames behind it are still there to be found."""
    for number in range(30):
        bench.put(f"a{number}", {"v": number})
    truth = bench.documents()
    db = freeze(bench, tmp_path / "frozen")
    # The checksum of the 20th frame: its page is whole, and SQLite will believe neither it nor what follows.
    flip(wal(db), 32 + 19 * (24 + 4096) + 17)
    assert_damaged(db, bench, "are missing: they were acknowledged")
    store, lost = repair(db, bench)
    assert (store.state.rev, lost) == (30, 0)
    assert {(c, i): (d.generation, d.body) for c, i, d in store.state.documents()} == truth
    store.close()


def test_a_flipped_byte_in_the_file_header_loses_no_entry(bench: Bench, flip: Flip) -> None:
    bench.grow(80, size=500)
    truth = bench.documents()
    bench.close()
    flip(bench.db, 3)
    assert_damaged(bench.db, bench)
    store, lost = repair(bench.db, bench)
    assert (store.state.rev, lost) == (80, 0)
    assert {(c, i): (d.generation, d.body) for c, i, d in store.state.documents()} == truth
    store.close()


def test_entries_larger_than_a_page_are_saved_from_raw_bytes_too(bench: Bench, flip: Flip) -> None:
    for number in range(10):
        bench.put(f"a{number}", {"x": f"{number}" * 50_000})
    truth = bench.documents()
    bench.close()
    flip(bench.db, 0)
    store, lost = repair(bench.db, bench)
    assert lost == 0
    assert {(c, i): (d.generation, d.body) for c, i, d in store.state.documents()} == truth
    store.close()


@pytest.mark.parametrize("content", [b"", b"\x00" * 8192, b"SQLite format 3\x00" + b"\xff" * 5000, b"not a database"])
def test_garbage_in_the_place_of_the_file_is_found_and_set_aside(bench: Bench, content: bytes) -> None:
    bench.grow(5)
    bench.close()
    bench.db.write_bytes(content)
    assert_damaged(bench.db, bench)
    store, lost = repair(bench.db, bench)
    assert (store.state.rev, lost) == (0, 5)
    store.close()


def test_a_missing_file_is_found(bench: Bench) -> None:
    bench.grow(5)
    bench.close()
    bench.db.unlink()
    assert "is missing" in survey(bench.db, CLUSTER).problem
    with pytest.raises(StoreCorrupt, match="is missing"):
        load(bench.db, CLUSTER, bench.key)
    assert not bench.db.exists(), "looking for it does not make it"


def test_an_empty_database_in_the_place_of_the_log_is_no_new_log(bench: Bench) -> None:
    bench.grow(5)
    bench.close()
    bench.db.unlink()
    sqlite3.connect(bench.db).execute("CREATE TABLE x (y)").connection.close()
    assert_damaged(bench.db, bench)


def test_an_older_copy_of_the_whole_file_is_found(bench: Bench, tmp_path: Path) -> None:
    bench.grow(5)
    bench.close()
    old = bench.db.read_bytes()
    bench.reopen()
    bench.grow(5)
    bench.close()
    bench.db.write_bytes(old)
    assert_damaged(bench.db, bench, "entries 6 to 10 are missing")


def test_a_damaged_description_is_found_and_made_again(bench: Bench) -> None:
    bench.grow(5)
    bench.close()
    db = sqlite3.connect(bench.db)
    db.execute("UPDATE meta SET value = CAST(substr(value, 1, length(value) - 1) || x'07' AS BLOB)")
    db.commit()
    db.close()
    assert_damaged(bench.db, bench, "description")
    store, lost = repair(bench.db, bench)
    assert (store.state.rev, lost) == (5, 0)
    store.close()


def test_a_damaged_snapshot_costs_no_rev(bench: Bench) -> None:
    bench.grow(2300)
    truth = bench.documents()
    bench.close()
    db = sqlite3.connect(bench.db)
    db.execute("UPDATE snapshot SET sealed = zeroblob(length(sealed)) WHERE rev = 2000")
    db.commit()
    db.close()
    assert_damaged(bench.db, bench, "snapshot 2000")
    store, lost = repair(bench.db, bench)
    assert (store.state.rev, lost, store.snapshot_rev) == (2300, 0, 1000)
    assert {(c, i): (d.generation, d.body) for c, i, d in store.state.documents()} == truth
    store.close()


def test_damage_before_a_snapshot_keeps_the_entries_before_it_and_the_state_after_it(bench: Bench) -> None:
    bench.grow(2300)
    truth = bench.documents()
    bench.close()
    db = sqlite3.connect(bench.db)
    db.execute("UPDATE entry SET sealed = zeroblob(length(sealed)) WHERE rev = 1500")
    db.commit()
    db.close()
    assert_damaged(bench.db, bench, "entry 1500 ")
    store, lost = repair(bench.db, bench)
    assert (store.state.rev, lost) == (2300, 0)
    assert {(c, i): (d.generation, d.body) for c, i, d in store.state.documents()} == truth
    store.close()
    reader = LogReader(bench.db)
    revs = [entry.rev for entry in reader.entries()]
    reader.close()
    assert revs == [*range(1, 1500), *range(2001, 2301)]
    bench.store = Store(bench.db, CLUSTER, bench.key)
    bench.grow(4000)
    assert survey(bench.db, CLUSTER, bench.key).ok, "the snapshot that stands for the gap stays as long as the gap"


def test_a_snapshot_swapped_for_an_older_one_is_found(bench: Bench) -> None:
    bench.grow(2100)
    bench.close()
    db = sqlite3.connect(bench.db)
    db.execute("DELETE FROM snapshot WHERE rev = 2000")
    db.execute("UPDATE snapshot SET rev = 2000 WHERE rev = 1000")
    db.commit()
    db.close()
    assert_damaged(bench.db, bench, "snapshot 2000")


def test_a_repair_without_the_key_keeps_the_same(bench: Bench, flip: Flip) -> None:
    bench.grow(30)
    bench.close()
    flip(bench.db, 0)
    store, lost = repair(bench.db, bench, with_key=False)
    assert (store.state.rev, lost) == (30, 0)
    store.close()


def test_a_repair_with_the_wrong_key_is_refused(bench: Bench) -> None:
    bench.grow(30)
    bench.close()
    with pytest.raises(StoreCorrupt, match="cannot be opened with this key"):
        salvage(bench.db, CLUSTER, SecretKey.random())


def test_a_repaired_log_takes_writes_and_survives_a_second_repair(bench: Bench, flip: Flip) -> None:
    bench.grow(10)
    bench.close()
    flip(bench.db, 0)
    bench.store, _ = repair(bench.db, bench)
    bench.grow(10)
    bench.close()
    flip(bench.db, 0)
    store, lost = repair(bench.db, bench)
    assert (store.state.rev, lost) == (20, 0)
    assert len(list(bench.db.parent.glob("control.db.corrupt-*[0-9Z]"))) == 2
    store.close()


@pytest.mark.parametrize("died_after", ["draft", "ready", "wal"])
def test_a_repair_that_dies_anywhere_is_ended_or_undone_at_the_next_open(
    bench: Bench, tmp_path: Path, died_after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real files as each step leaves them: no step is between two renames that must both happen."""
    bench.grow(30)
    db = freeze(bench, tmp_path / "frozen")
    content = bytearray(wal(db).read_bytes())
    content[used(wal(db)) - 1] ^= 1
    wal(db).write_bytes(bytes(content))
    shm = Path(f"{db}-shm")
    saved = salvage(db, CLUSTER, bench.key)

    class Died(BaseException):
        pass

    import services.persistence.repair as module

    def die(*_: object) -> None:
        raise Died

    if died_after == "draft":
        monkeypatch.setattr(module, "_set_aside", die)
    elif died_after == "ready":
        monkeypatch.setattr(module, "finish", die)
    with pytest.raises(Died):
        if died_after == "wal":
            real = module.finish
            monkeypatch.setattr(module, "finish", die)
            try:
                rebuild(db, saved)
            finally:
                monkeypatch.setattr(module, "finish", real)
                wal(db).unlink()
                shm.unlink(missing_ok=True)
        else:
            rebuild(db, saved)
    monkeypatch.undo()
    finish(db)
    if died_after == "draft":
        assert not survey(db, CLUSTER, bench.key).ok
        rebuild(db, salvage(db, CLUSTER, bench.key))
    assert survey(db, CLUSTER, bench.key).ok
    store = Store(db, CLUSTER, bench.key)
    assert store.state.rev == saved.rev
    store.close()


def test_garbage_in_the_mark_stops_nothing(bench: Bench) -> None:
    bench.grow(5)
    bench.close()
    for content in (b"", b"\xff" * 10, b"\x00" * 4096):
        head_path(bench.db).write_bytes(content)
        assert survey(bench.db, CLUSTER, bench.key).ok
        bench.reopen()
        bench.put("hello", {"v": content.hex()})
        bench.close()

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from services.telemetry import journal as journal_file
from services.telemetry.ids import Ids
from services.telemetry.journal import Entry, Journal

DAY_MS = 86_400_000


def entry(number: int = 1, kind: str = "AppStateChanged", key: str = "hello", at_ms: int = 1000, **more: object) -> Entry:
    return Entry(kind, key, at_ms, "n1", {"n": number, **more}, bool(more.get("minor", False)))


def ids(found: object) -> list[int]:
    return [event.id for event in found.events]  # type: ignore[attr-defined]


@pytest.fixture
def made(tmp_path: Path) -> Journal:
    return Journal(tmp_path)


def test_what_was_written_is_read_in_order(made: Journal) -> None:
    assert made.append([entry(1), entry(2)]) == 2
    assert made.append([entry(3)]) == 3
    assert ids(made.read(-1, 10)) == [1, 2, 3]
    assert ids(made.read(1, 10)) == [2, 3]
    assert ids(made.read(1, 1)) == [2]
    assert ids(made.read(-1, 2)) == [2, 3]
    assert made.read(3, 10).last_id == 3
    assert made.read(-1, 1).events[0].body == {"n": 3}


def test_it_can_be_filtered_by_type_and_key(made: Journal) -> None:
    made.append([entry(1), entry(2, kind="Audit"), entry(3, key="other")])
    assert ids(made.read(-1, 10, "Audit")) == [2]
    assert ids(made.read(-1, 10, "", "hello")) == [1, 2]
    assert ids(made.read(-1, 10, "AppStateChanged", "other")) == [3]
    assert ids(made.read(-1, 10, "'; DROP TABLE event; --")) == []


def test_ids_go_on_after_a_restart(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.append([entry()])
    first.close()
    second = Journal(tmp_path)
    assert second.append([entry()]) == 2
    assert ids(second.read(-1, 10)) == [1, 2]


def test_ids_go_on_when_everything_was_pruned(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    last = first.append([entry() for _ in range(5)])
    first.prune(1, 100 * DAY_MS)
    first.close()
    assert Journal(tmp_path).append([entry()]) > last


def test_after_a_power_cut_no_id_is_given_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Journal(tmp_path)
    last = first.append([entry() for _ in range(5)])
    first.close()
    with sqlite3.connect(tmp_path / "events.db") as base:
        base.execute("DELETE FROM event WHERE id > 2")  # the end that the disk did not get
    base.close()
    monkeypatch.setattr("piccolod.clock.boot_id", lambda: "another boot")
    assert Journal(tmp_path).append([entry()]) > last


def test_a_damaged_id_file_costs_nothing_while_the_journal_is_whole(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.append([entry(), entry()])
    first.close()
    (tmp_path / "ids.json").write_bytes(b"\x00garbage")
    assert Journal(tmp_path).append([entry()]) == 3


@pytest.mark.parametrize("garbage", [b"this is no database at all, not one byte of it" * 100, b"\x00" * 8192])
def test_a_damaged_file_is_set_aside_and_named_and_ids_go_on(tmp_path: Path, garbage: bytes) -> None:
    first = Journal(tmp_path)
    last = first.append([entry() for _ in range(5)])
    first.close()
    (tmp_path / "events.db").write_bytes(garbage)
    second = Journal(tmp_path)
    assert second.set_aside.startswith("events.db.corrupt-")
    assert (tmp_path / second.set_aside).read_bytes() == garbage
    assert second.append([entry()]) > last


def test_damage_in_the_middle_is_found_by_the_check(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    last = first.append([entry(n, text="x" * 2000) for n in range(200)])
    first.close()
    file = tmp_path / "events.db"
    with file.open("r+b") as opened:
        for page in range(5, 40):
            opened.seek(page * 4096)
            opened.write(b"\xff" * 64)
    second = Journal(tmp_path)
    assert second.check() != ""
    second.begin_anew()
    assert second.check() == ""
    assert (tmp_path / second.set_aside).exists()
    assert second.append([entry()]) > last
    assert len(second.read(-1, 10).events) == 1


def test_only_the_last_damaged_files_are_kept(tmp_path: Path) -> None:
    made = Journal(tmp_path)
    for _ in range(5):
        made.begin_anew()
    assert len(list(tmp_path.glob("*.corrupt-*"))) <= 3


def test_what_is_too_old_goes(made: Journal) -> None:
    made.append([entry(1, at_ms=DAY_MS), entry(2, at_ms=40 * DAY_MS)])
    assert made.prune(30, 41 * DAY_MS) == 1
    assert ids(made.read(-1, 10)) == [2]


def test_it_stays_below_its_size_and_the_oldest_go_first(tmp_path: Path) -> None:
    made = Journal(tmp_path, max_bytes=2**20)
    made.append([entry(n, text="x" * 5000) for n in range(500)])
    assert made.prune(30, 2000) > 0
    left = ids(made.read(-1, 1000))
    assert left[-1] == 500
    assert left == list(range(left[0], 501))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2 * 2**20


def test_refusals_of_strangers_go_before_anything_else(tmp_path: Path) -> None:
    made = Journal(tmp_path, max_bytes=2**20)
    made.append([entry(n, text="x" * 5000) for n in range(20)])
    made.append([entry(n, kind="Audit", text="x" * 5000, minor=True) for n in range(300)])
    made.prune(30, 2000)
    assert len(made.read(-1, 1000, "AppStateChanged").events) == 20


def test_the_last_state_of_each_topic_is_known(made: Journal) -> None:
    made.append([entry(1), entry(2), entry(3, key="other"), entry(4, kind="Audit")])
    assert made.latest(["AppStateChanged"]) == {
        ("AppStateChanged", "hello"): {"n": 2},
        ("AppStateChanged", "other"): {"n": 3},
    }


def test_a_write_that_fails_takes_no_ids(made: Journal) -> None:
    made.append([entry()])
    with pytest.raises(sqlite3.IntegrityError):
        made.append([entry(), Entry("t", None, 1, "n", {})])  # type: ignore[arg-type]
    assert made.append([entry()]) == 2


def test_a_full_disk_refuses_the_batch_whole(made: Journal) -> None:
    made.append([entry()])
    made._base.execute(f"PRAGMA max_page_count = {made._base.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        made.append([entry(n, text="x" * 5000) for n in range(50)])
    made._base.execute("PRAGMA max_page_count = 1000000")
    assert made.append([entry()]) == 2


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    Journal(tmp_path)
    assert (tmp_path / "events.db").stat().st_mode & 0o777 == 0o600


def test_what_was_committed_outlives_a_kill(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from services.telemetry.journal import Entry, Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "while True:\n"
        "    print(journal.append([Entry('t', 'k', 1, 'n', {'x': 'y' * 300})] * 3), flush=True)\n"
    )
    for _ in range(10):
        child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        told = [int(child.stdout.readline()) for _ in range(20)]
        os.kill(child.pid, signal.SIGKILL)
        rest, _ = child.communicate(timeout=10)
        told += [int(line) for line in rest.splitlines() if line.strip()]
        made = Journal(tmp_path)
        assert made.set_aside == ""
        assert made.last_id >= told[-1]
        assert ids(made.read(told[-1] - 3, 3)) == [told[-1] - 2, told[-1] - 1, told[-1]]
        made.close()


def test_ids_are_reserved_before_they_are_used(tmp_path: Path) -> None:
    file = tmp_path / "ids.json"
    first = Ids(file, 0)
    assert first.take(3) == 1
    assert first.take(1) == 4
    assert Ids(file, None).take(1) > 4


def test_ids_that_cannot_be_reserved_are_not_used(tmp_path: Path) -> None:
    taken = Ids(tmp_path / "absent" / "ids.json", 0)
    with pytest.raises(OSError, match="No such"):
        taken.take(1)
    assert taken.last == 0


def test_a_folder_that_cannot_be_used_is_an_error_and_not_damage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        Journal(tmp_path / "file")
    assert journal_file.damaged(sqlite3.OperationalError("x")) is False

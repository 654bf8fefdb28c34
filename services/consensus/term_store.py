"""The terms of a node alone, on its disk: `state_dir/consensus/terms.db`, every change synced before it is believed.

One counter, `revision`, grows with each change and is the token of a term that begins with it, as the mod revision is in etcd.
Blocking; used from one thread.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from piccolod import clock
from piccolod.errors import StoreCorrupt, StoreFull, StoreUnavailable
from piccolod.leadership.records import ChangeRecord, TermRecord
from services.consensus.gen import GenFile

# Each change is some 100 bytes: months of a busy home in well below 2 MiB.
HISTORY_LENGTH: Final = 10_000
# Below it there is room for the first records of a cluster, into which the terms move under their tokens (seed.py).
_FIRST_REVISION: Final = 100
_ASIDE: Final = ".damaged-"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS session (
    one INTEGER PRIMARY KEY CHECK (one = 1), gen INTEGER, revision INTEGER, boot_id TEXT, sid INTEGER) STRICT;
CREATE TABLE IF NOT EXISTS terms (
    resource TEXT PRIMARY KEY, gen INTEGER, epoch INTEGER, token INTEGER, sid INTEGER, node TEXT,
    state TEXT, reason TEXT, since_ms INTEGER, closing_at REAL) STRICT;
CREATE TABLE IF NOT EXISTS history (
    id INTEGER PRIMARY KEY AUTOINCREMENT, resource TEXT, epoch INTEGER, at_ms INTEGER,
    from_node TEXT, to_node TEXT, reason TEXT, phases TEXT) STRICT;
CREATE INDEX IF NOT EXISTS history_of ON history (resource, id);
"""


def open_store(file: Path, least_gen: int) -> TermStore:
    """The store of terms. A damaged one is set aside, never deleted, and a new one begins under a gen of its own.

    As after a restored etcd: a pair (gen, epoch) of the new one is above every pair of the old one. `least_gen`: what is
    known from elsewhere of the gens that were.
    """
    gens = GenFile(file.with_name("gen"))
    try:
        store = TermStore(file, lambda: gens.next(least_gen))
    except StoreCorrupt:
        aside = file.with_name(f"{file.name}{_ASIDE}{clock.wall_ms()}")
        for suffix in ("-wal", "-shm", ""):  # the main file last: until then this runs again after a crash
            part = file.with_name(file.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        store = TermStore(file, lambda: gens.next(least_gen))
    gens.lift(store.gen)
    return store


def forget(file: Path) -> None:
    """The terms that a node had alone, once it has been a member: the next store begins under a gen above. Raises OSError."""
    for suffix in ("-wal", "-shm", ""):  # the main file last: until then this can run again after a crash
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def set_aside(file: Path) -> list[Path]:
    """The damaged stores that lie beside the present one, oldest first."""
    return sorted(path for path in file.parent.glob(f"{file.name}{_ASIDE}*") if path.name.rpartition("-")[2].isdigit())


class TermStore:
    """Raises StoreCorrupt, here or later, for a file that is no sound store of terms."""

    def __init__(self, file: Path, new_gen: Callable[[], int]) -> None:
        """`new_gen` is asked when there is no store yet; it is on the disk before the store is."""
        self._file = file
        with self._named_errors():
            self._db = sqlite3.connect(file, isolation_level=None, timeout=1.0)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                self._create(new_gen())
            elif self._db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("quick_check failed")
            self.terms()
            self.gen: Final = int(self._db.execute("SELECT gen FROM session").fetchone()[0])

    def _create(self, gen: int) -> None:
        """All of the schema or nothing, also if the process dies in between."""
        self._db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            self._db.execute(statement)
        self._db.execute("INSERT INTO session VALUES (1, ?, ?, '', 0)", (gen, _FIRST_REVISION))
        self._db.execute("COMMIT")

    @contextmanager
    def change(self) -> Iterator[int]:
        """A transaction; its revision is given. All of it is on the disk afterwards, or nothing."""
        with self._named_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.execute("UPDATE session SET revision = revision + 1")
                yield self.revision()
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def revision(self) -> int:
        return int(self._db.execute("SELECT revision FROM session").fetchone()[0])

    def raise_revision(self, least: int) -> None:
        self._db.execute("UPDATE session SET revision = max(revision, ?)", (least,))

    def session(self) -> tuple[str, int]:
        """(boot id, sid) of the last session."""
        with self._named_errors():
            row = self._db.execute("SELECT boot_id, sid FROM session").fetchone()
            return str(row["boot_id"]), int(row["sid"])

    def set_session(self, boot_id: str, sid: int) -> None:
        self._db.execute("UPDATE session SET boot_id = ?, sid = ?", (boot_id, sid))

    def terms(self) -> dict[str, TermRecord]:
        with self._named_errors():
            rows = self._db.execute("SELECT * FROM terms").fetchall()
            return {row["resource"]: msgspec.convert(dict(row), TermRecord) for row in rows}

    def put(self, record: TermRecord) -> None:
        values = msgspec.to_builtins(record)
        marks = ", ".join(f":{name}" for name in values)
        self._db.execute(f"INSERT OR REPLACE INTO terms ({', '.join(values)}) VALUES ({marks})", values)  # noqa: S608

    def add_history(self, change: ChangeRecord) -> None:
        values = {**msgspec.to_builtins(change), "phases": json.dumps(change.phases)}
        marks = ", ".join(f":{name}" for name in values)
        self._db.execute(f"INSERT INTO history ({', '.join(values)}) VALUES ({marks})", values)  # noqa: S608
        self._db.execute("DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - ?", (HISTORY_LENGTH,))

    def history(self, resource: str | None, limit: int) -> tuple[ChangeRecord, ...]:
        with self._named_errors():
            where = "" if resource is None else "WHERE resource = :resource"
            rows = self._db.execute(
                f"SELECT resource, epoch, at_ms, from_node, to_node, reason, phases FROM history {where} "  # noqa: S608
                "ORDER BY id DESC LIMIT :limit",
                {"resource": resource, "limit": limit},
            )
            return tuple(msgspec.convert({**dict(row), "phases": json.loads(row["phases"])}, ChangeRecord) for row in rows)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError) as error:
            code = (getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_CORRUPT) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise StoreFull(f"no room to record a term in {self._file}", hint="free some disk space") from error
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise StoreCorrupt(
                    f"{self._file} is damaged: {error}", hint="apps run on; restore the file to lead again"
                ) from error
            raise StoreUnavailable(f"cannot record terms in {self._file}: {error}", hint="see the disk") from error

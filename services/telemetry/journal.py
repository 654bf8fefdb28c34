"""The event journal: a SQLite file that is bounded in age and size, and begun anew when it is damaged.

WAL with synchronous=NORMAL: what was committed outlives a kill -9; a power cut may cost the last moments, never the file.
Blocking: for a thread. One thread at a time.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from piccolod import clock
from piccolod.protocol.telemetry import EventRecord, EventRecords
from services.telemetry.ids import Ids

MAX_BYTES: Final = 64 * 2**20
_DAY_MS: Final = 86_400_000
_VERSION: Final = 1
_KEPT_ASIDE: Final = 3  # damaged journals
_PRUNE_SHARE: Final = 20  # one twentieth of the events goes at a time
_WAL_BYTES: Final = 4 * 2**20

_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS event (
    id INTEGER PRIMARY KEY, at INTEGER NOT NULL, type TEXT NOT NULL, key TEXT NOT NULL, node TEXT NOT NULL,
    minor INTEGER NOT NULL, body BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS event_by_topic ON event (type, key, id);
CREATE INDEX IF NOT EXISTS event_minor ON event (id) WHERE minor;
PRAGMA user_version = {_VERSION};
"""
_COLUMNS: Final = "id, type, key, at, node, body"


@dataclass(frozen=True, slots=True)
class Entry:
    """An event to be written. `minor`: goes first when room is needed."""

    type: str
    key: str
    at_ms: int
    node: str
    body: dict[str, Any]
    minor: bool = False


class Journal:
    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        """Opens or begins the journal. Raises OSError or sqlite3.OperationalError when the folder is of no use."""
        self.file = folder / "events.db"
        self.set_aside = ""  # the name that a damaged journal got
        self._max_bytes = max_bytes
        self._guard = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        newest: int | None
        try:
            self._base, newest = _open(self.file)
        except sqlite3.DatabaseError as error:
            if not damaged(error):
                raise
            self._put_aside()
            self._base, newest = _open(self.file)[0], None
        # Without the file there is no newest either: an id that was shown once is never given again.
        self._ids = Ids(folder / "ids.json", newest or None)

    @property
    def last_id(self) -> int:
        return self._ids.last

    def append(self, entries: Sequence[Entry]) -> int:
        """All in one transaction, or none. Returns the last id. Raises sqlite3.Error or OSError."""
        with self._guard:
            first = self._ids.take(len(entries))
            try:
                with self._base:
                    self._base.executemany(
                        "INSERT INTO event (id, at, type, key, node, minor, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
                        [_row(first + index, entry) for index, entry in enumerate(entries)],
                    )
            except BaseException:
                self._ids.give_back(len(entries))
                raise
            return self._ids.last

    def read(self, after: int, limit: int, type_: str = "", key: str = "") -> EventRecords:
        """Events with a greater id, oldest first; `after` < 0: the last ones. Raises sqlite3.Error."""
        where, values = ["id > ?"], [after]
        filters: list[Any] = []
        for column, wanted in (("type", type_), ("key", key)):
            if wanted:
                where.append(f"{column} = ?")
                filters.append(wanted)
        order = "DESC" if after < 0 else "ASC"
        query = f"SELECT {_COLUMNS} FROM event WHERE {' AND '.join(where)} ORDER BY id {order} LIMIT ?"  # noqa: S608
        with self._guard:
            rows = self._base.execute(query, [*values, *filters, limit]).fetchall()
            last = self._ids.last
        records = [_record(row) for row in rows]
        return EventRecords(events=tuple(reversed(records) if after < 0 else records), last_id=last)

    def latest(self, types: Iterable[str]) -> dict[tuple[str, str], dict[str, Any]]:
        """The last body of each topic of these types."""
        query = "SELECT type, key, body FROM event WHERE id IN (SELECT max(id) FROM event WHERE type = ? GROUP BY type, key)"
        with self._guard:
            rows = [row for name in types for row in self._base.execute(query, (name,))]
        return {(kind, key): msgspec.json.decode(body) for kind, key, body in rows}

    def prune(self, days: int, now_ms: int) -> int:
        """Removes what is too old, then what is too much: refusals of strangers first, so that none can flush the rest."""
        with self._guard:
            removed = self._delete("at < ?", now_ms - days * _DAY_MS)
            if self._used_bytes() > self._max_bytes:
                removed += self._delete("minor AND id IN (SELECT id FROM event WHERE minor ORDER BY id LIMIT ?)", 50_000)
            while self._used_bytes() > self._max_bytes:
                count = self._base.execute("SELECT count(*) FROM event").fetchone()[0]
                if not (gone := self._delete("id IN (SELECT id FROM event ORDER BY id LIMIT ?)", count // _PRUNE_SHARE + 1)):
                    break
                removed += gone
            if removed:
                self._base.executescript("PRAGMA incremental_vacuum")  # `execute` would free one page
                self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return removed

    def check(self) -> str:
        """What is wrong with the file; empty when nothing is. Takes a second a gigabyte."""
        try:
            with self._guard:
                found = self._base.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as error:
            return str(error)
        return "" if found == "ok" else str(found)

    def begin_anew(self) -> None:
        """The damaged file keeps its content under another name; ids go on growing."""
        with self._guard:
            with suppress(sqlite3.Error):
                self._base.close()
            self._put_aside()
            self._base, _ = _open(self.file)
            self._ids = Ids(self.file.parent / "ids.json", None)

    def close(self) -> None:
        with self._guard, suppress(sqlite3.Error):
            self._base.close()

    def _delete(self, where: str, value: int) -> int:
        with self._base:
            return self._base.execute(f"DELETE FROM event WHERE {where}", (value,)).rowcount  # noqa: S608

    def _used_bytes(self) -> int:
        pages, free, size = (
            self._base.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _put_aside(self) -> None:
        name = f"{self.file.name}.corrupt-{clock.wall_ms()}"
        self.file.rename(self.file.with_name(name))
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self.file}{suffix}")
        self.set_aside = name
        for old in sorted(self.file.parent.glob(f"{self.file.name}.corrupt-*"))[:-_KEPT_ASIDE]:
            old.unlink()


def damaged(error: sqlite3.Error) -> bool:
    """Whether the file itself is broken, and not the disk full or the folder away."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _open(file: Path) -> tuple[sqlite3.Connection, int]:
    base = sqlite3.connect(file, check_same_thread=False, timeout=5.0)
    try:
        base.execute("PRAGMA auto_vacuum = INCREMENTAL")
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = NORMAL")
        base.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        base.execute("PRAGMA cache_size = -1024")
        base.executescript(_SCHEMA)
        newest = base.execute("SELECT max(id) FROM event").fetchone()[0]
    except BaseException:
        base.close()
        raise
    os.chmod(file, 0o600)
    return base, int(newest or 0)


def _row(number: int, entry: Entry) -> tuple[Any, ...]:
    body = msgspec.json.encode(entry.body)
    return number, entry.at_ms, entry.type, entry.key, entry.node, int(entry.minor), body


def _record(row: tuple[Any, ...]) -> EventRecord:
    number, kind, key, at_ms, node, body = row
    return EventRecord(id=number, type=kind, key=key, at=at_ms, node=node, body=msgspec.json.decode(body))

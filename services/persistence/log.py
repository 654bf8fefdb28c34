"""The local file of the log: SQLite, WAL, `synchronous=FULL`. Only sealed bytes and their plain headers are in it.

    entry     one row a rev
    snapshot  the sealed state after a rev: each SNAPSHOT_EVERY revs, and where a gap ends
    meta      one row: cluster, what repairs declared (losses and gaps), and what a member took as a snapshot (gaps)

A `LogReader` never writes: not even by closing, when SQLite would move the write-ahead log into the file and delete it. So
looking at a damaged file leaves it as it was found. Neither class is safe for use by two threads at once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from piccolod import durable
from piccolod.errors import PiccoloError, StoreCorrupt, StoreFull, StoreUnavailable
from services.persistence.entry import ENTRY_LIMIT_BYTES, Sealed

SNAPSHOT_EVERY: Final = 1000
SNAPSHOTS_KEPT: Final = 3
FORMAT: Final = 1
BUSY_S: Final = 5.0
RESERVED_BYTES: Final = 4 * 1024 * 1024  # 1000 pages, where SQLite moves the write-ahead log into the file
RESERVED_ROOM_BYTES: Final = 16 * RESERVED_BYTES

_PROBE_BYTES: Final = 64 * 1024

_BLOBS: Final = ("header", "nonce", "sealed", "digest")
_SEALED: Final = "rev INTEGER PRIMARY KEY, " + ", ".join(f"{name} BLOB NOT NULL" for name in _BLOBS)
_SCHEMA: Final = f"""
CREATE TABLE entry ({_SEALED}) STRICT;
CREATE TABLE snapshot ({_SEALED}) STRICT;
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL, digest BLOB NOT NULL) STRICT;
"""
_COLUMNS: Final = ", ".join(("rev", *_BLOBS))
_INSERT_ENTRY: Final = "INSERT INTO entry VALUES (?, ?, ?, ?, ?)"
REPAIR_HINT: Final = "see `piccoloctl store check`; `piccoloctl store repair` keeps every write up to the damage"


class Gap(msgspec.Struct, frozen=True, array_like=True):
    """Revs that are not in this file; the snapshot of `last` stands for them."""

    first: int
    last: int


class Meta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`losses` counts the repairs that lost revs: such revs are made again, under a higher `gen`."""

    format: int
    cluster: str
    losses: int = 0
    gaps: tuple[Gap, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_meta = msgspec.msgpack.Decoder(Meta)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turns what SQLite and the disk say into the error that says what to do, with the file's name."""
    try:
        yield
    except sqlite3.Error as error:
        raise _named(path, error) from error
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror or error}") from error


def _named(path: Path, error: sqlite3.Error) -> PiccoloError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full(path.parent)):
        return StoreFull(f"{path}: the disk is full", hint="free space; nothing was written")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR):
        return StoreCorrupt(f"{path} is damaged: {error}", hint=REPAIR_HINT)
    return StoreUnavailable(f"{path}: {error}", hint="check the disk and its permissions")


def _is_full(folder: Path) -> bool:
    try:
        return os.statvfs(folder).f_bavail == 0
    except OSError:
        return False


class LogReader:
    """Reads a log and changes nothing on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise StoreCorrupt(f"{path} is missing", hint=REPAIR_HINT)
        with named_errors(path):
            self._db = _connect(path, "ro")

    def close(self) -> None:
        self._db.close()

    def meta(self) -> Meta:
        with named_errors(self.path):
            row = self._db.execute("SELECT value, digest FROM meta WHERE name = 'log'").fetchone()
        if row is None or not isinstance(row[0], bytes) or hashlib.sha256(row[0]).digest() != row[1]:
            raise StoreCorrupt(f"{self.path} is damaged: its description is not whole", hint=REPAIR_HINT)
        try:
            return _meta.decode(row[0])
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(f"{self.path} is damaged or of a newer piccolod: {error}", hint=REPAIR_HINT) from error

    def structure_problems(self) -> list[str]:
        """What SQLite itself finds wrong with the file's pages; and a file that ends within one, which it reads as zeros."""
        with named_errors(self.path):
            found = [str(row[0]) for row in self._db.execute("PRAGMA quick_check(8)")]
            page_bytes = int(self._db.execute("PRAGMA page_size").fetchone()[0])
        problems = [] if found == ["ok"] else found
        if over := self.path.stat().st_size % page_bytes:
            problems.append(f"the file ends {over} bytes into a page: it was cut off")
        return problems

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All reads inside see the file as of one moment, whatever a writer does."""
        with named_errors(self.path):
            self._db.execute("BEGIN")
        try:
            yield
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def entries(self, after: int = 0, limit: int = -1) -> Iterator[Sealed]:
        """Entries in order of rev. Raises StoreCorrupt where the file cannot be read on."""
        return self._items(f"SELECT {_COLUMNS} FROM entry WHERE rev > ? ORDER BY rev LIMIT ?", after, limit)  # noqa: S608

    def size_after(self, rev: int) -> tuple[int, int]:
        """How many bytes the entries after `rev` have, and the last of them (`rev` without any)."""
        with named_errors(self.path):
            query = "SELECT total(length(header) + length(sealed)), max(rev) FROM entry WHERE rev > ?"
            size_bytes, last = self._db.execute(query, (rev,)).fetchone()
        return int(size_bytes), last or rev

    def newest_entries(self, before: int, limit: int) -> Iterator[Sealed]:
        """Entries below `before`, newest first."""
        return self._items(f"SELECT {_COLUMNS} FROM entry WHERE rev < ? ORDER BY rev DESC LIMIT ?", before, limit)  # noqa: S608

    def snapshots(self) -> Iterator[Sealed]:
        """Snapshots, newest first."""
        return self._items(f"SELECT {_COLUMNS} FROM snapshot ORDER BY rev DESC")  # noqa: S608

    def _items(self, query: str, *arguments: int) -> Iterator[Sealed]:
        with named_errors(self.path):
            for row in self._db.execute(query, arguments):
                if not all(isinstance(value, bytes) for value in row[1:]):
                    raise StoreCorrupt(f"{self.path} is damaged: rev {row[0]} is not readable", hint=REPAIR_HINT)
                yield Sealed(*row)


class LogFile(LogReader):
    """Appends to a log that was verified. One process a file; the supervisor's lock sees to that.

    `synced` false (`synchronous=NORMAL`): a power loss may take the last appends, and nothing but them.
    """

    def __init__(self, path: Path, *, synced: bool = True) -> None:
        self.path = path
        with named_errors(path):
            self._db = _connect(path, "rw")
            if not synced:
                self._db.execute("PRAGMA synchronous = NORMAL")

    @classmethod
    def create(cls, path: Path, meta: Meta) -> LogFile:
        """A new log with no entry, durable when this returns. Raises StoreUnavailable or StoreFull."""
        with named_errors(path):
            db = _connect(path, "rwc")
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            finally:
                db.close()
            os.chmod(path, 0o600)
        log = cls(path)
        log.replace_meta(meta)
        durable.sync_folder(path.parent)
        return log

    def append(self, entries: Sequence[Sealed], guard: Callable[[], None] = lambda: None) -> None:
        """Makes all of `entries` durable in one transaction, or none.

        `guard` runs at the last moment before the commit; what it raises refuses the write whole.
        """
        rows = [(e.rev, e.header, e.nonce, e.sealed, e.digest) for e in entries]
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(_INSERT_ENTRY, rows)
            guard()
            db.execute("COMMIT")
        except BaseException as error:
            self._roll_back()
            if isinstance(error, sqlite3.Error):
                raise _named(self.path, error) from error
            raise

    def add_snapshot(self, snapshot: Sealed, gaps: Sequence[Gap]) -> None:
        """Keeps `snapshot`, the SNAPSHOTS_KEPT newest, and those that stand for a gap."""
        anchors = [gap.last for gap in gaps]
        with self._transaction():
            self._put_snapshot(snapshot)
            revs = [row[0] for row in self._db.execute("SELECT rev FROM snapshot ORDER BY rev DESC")]
            for rev in revs[SNAPSHOTS_KEPT:]:
                if rev not in anchors:
                    self._db.execute("DELETE FROM snapshot WHERE rev = ?", (rev,))

    def fill(self, entries: Sequence[Sealed], snapshots: Sequence[Sealed], meta: Meta) -> None:
        """Puts what a repair saved into a new log."""
        with self._transaction():
            self._db.executemany(
                _INSERT_ENTRY,
                [(e.rev, e.header, e.nonce, e.sealed, e.digest) for e in entries],
            )
            for snapshot in snapshots:
                self._put_snapshot(snapshot)
            self._put_meta(meta)

    def replace_meta(self, meta: Meta) -> None:
        with self._transaction():
            self._put_meta(meta)

    def settle(self) -> None:
        """Moves the write-ahead log into the file and syncs both. Raises when the disk does not take it."""
        with named_errors(self.path):
            busy, _, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreUnavailable(f"{self.path}: another reader holds the log")

    def probe(self) -> None:
        """A transaction that changes nothing, and room for the largest entry. Raises what a commit would raise."""
        self.replace_meta(self.meta())
        file = self.path.with_name(f"{self.path.name}.probe")
        try:
            with open(file, "wb", buffering=0) as probe:
                file.unlink()
                for _ in range(0, ENTRY_LIMIT_BYTES, _PROBE_BYTES):
                    probe.write(bytes(_PROBE_BYTES))
                os.fsync(probe.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(f"{self.path}: the disk is full", hint="free space; nothing was written") from error
            raise StoreUnavailable(f"{self.path}: {error.strerror}") from error

    def reserve(self) -> None:
        """Gives an empty write-ahead log the blocks that it will need until it is begun anew. Best effort.

        A sync of a file that grows also commits the file system's journal: 290 us against 180 us where the blocks are there
        (ext4, measured). To SQLite zeros are the end of the log.
        """
        wal = Path(f"{self.path}-wal")
        with contextlib.suppress(OSError):
            room = os.statvfs(self.path.parent)
            if wal.stat().st_size > 0 or room.f_bavail * room.f_frsize < RESERVED_ROOM_BYTES:
                return
            with open(wal, "r+b", buffering=0) as file:
                file.write(bytes(RESERVED_BYTES))
                os.fdatasync(file.fileno())

    def _put_snapshot(self, item: Sealed) -> None:
        row = (item.rev, item.header, item.nonce, item.sealed, item.digest)
        self._db.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?, ?, ?)", row)

    def _put_meta(self, meta: Meta) -> None:
        value = _encoder.encode(meta)
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('log', ?, ?)", (value, hashlib.sha256(value).digest()))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with named_errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        """Best effort: after an I/O error SQLite may have rolled back by itself, or may not be able to."""
        if self._db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """`mode`: ro, rw or rwc. The path is quoted: a `?` or `%` in it is part of the name."""
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_S
    )
    try:
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA temp_store = MEMORY")
        if mode == "rw":
            db.execute("PRAGMA journal_mode = WAL")
    except BaseException:
        db.close()
        raise
    return db

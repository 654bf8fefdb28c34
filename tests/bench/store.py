"""The control store: a commit against a bare SQLite FULL commit of the same bytes, reading, replay.

    python -m tests.bench.store

Commits of ours and of the control alternate, so that a slow moment of the disk meets both. The bare control writes what
our entry has: header, nonce, sealed bytes and digest.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from services.persistence import verify
from services.persistence.ledger import Batch, Write
from services.persistence.secret import SecretKey
from services.persistence.state import put
from services.persistence.store import Store

_COMMITS = 1500
_REPLAYED = 10_000
_DOCUMENT = {"name": "hello", "image": "localhost/piccolo-demo:1", "manifest": "x" * 700}


def _write(number: int) -> Write:
    return Write([put("apps", f"app-{number % 50}", {**_DOCUMENT, "number": number})], {}, "bench", f"idem-{number}", 1)


def _bare(file: Path) -> sqlite3.Connection:
    bare = sqlite3.connect(file, isolation_level=None)
    bare.execute("PRAGMA journal_mode = WAL")
    bare.execute("PRAGMA synchronous = FULL")
    bare.execute("CREATE TABLE entry (rev INTEGER PRIMARY KEY, bytes BLOB)")
    return bare


def _commits(store: Store, bare: sqlite3.Connection) -> tuple[list[float], list[float]]:
    ours, theirs = [], []
    for number in range(_COMMITS):
        began = time.perf_counter()
        batch = Batch(store, 1, 1)
        batch.add(_write(number))
        store.append(batch)
        store.fold(batch.items)
        ours.append(time.perf_counter() - began)
        entry = batch.items[0].sealed
        data = entry.header + entry.nonce + entry.sealed + entry.digest
        began = time.perf_counter()
        bare.execute("BEGIN IMMEDIATE")
        bare.execute("INSERT INTO entry VALUES (?, ?)", (number, data))
        bare.execute("COMMIT")
        theirs.append(time.perf_counter() - began)
    return ours, theirs


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder, key = Path(name), SecretKey.random()
        db = folder / "control.db"
        Store.create(db, "bench")
        store = Store(db, "bench", key)
        ours, theirs = _commits(store, _bare(folder / "bare.db"))
        for first in range(_COMMITS, _REPLAYED, 100):
            batch = Batch(store, 1, 1)
            for number in range(first, first + 100):
                batch.add(_write(number))
            store.append(batch)
            store.fold(batch.items)
        store.close()
        replays = []
        for _ in range(5):
            began = time.perf_counter()
            loaded = verify.load(db, "bench", key)
            replays.append(time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(10_000):
            msgspec.msgpack.decode(loaded.state.get("apps", "app-1").body)  # type: ignore[union-attr]
        return {
            "commit_us": statistics.median(ours) * 1e6,
            "bare_us": statistics.median(theirs) * 1e6,
            "commit_ratio": statistics.median(ours) / statistics.median(theirs),
            "replay_s": statistics.median(replays),
            "replayed": loaded.state.rev,
            "read_us": (time.perf_counter() - began) * 100,
        }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))

"""What the tests of persistence share: a store on a real disk, a house of real processes, and cheap parameters of Argon2id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from piccolod import clock
from services.persistence.keyset import Kdf
from services.persistence.ledger import Batch, Write
from services.persistence.secret import SecretKey
from services.persistence.state import put
from services.persistence.store import Store

from .house import PERSISTENCE, House, begun

CLUSTER = "cluster-under-test"
HOUR_MS = 3_600_000
CHEAP = Kdf(memory_kib=16, iterations=1, lanes=1)


def used(path: Path) -> int:
    """The size of a file without the zeros of blocks that are only reserved."""
    return len(path.read_bytes().rstrip(b"\x00"))


class Bench:
    """A store with shorthand for what tests do with it."""

    def __init__(self, folder: Path) -> None:
        self.db = folder / "store" / "control.db"
        self.key = SecretKey.random()
        Store.create(self.db, CLUSTER)
        self.store = self.reopen()

    def reopen(self, key: SecretKey | None = None) -> Store:
        self.close()
        self.store = Store(self.db, CLUSTER, key or self.key)
        return self.store

    def close(self) -> None:
        if hasattr(self, "store"):
            self.store.close()

    def put(self, id: str, document: Any, *, idem: str = "", expect: dict[tuple[str, str], int] | None = None) -> int:
        return self.write(Write([put("apps", id, document)], expect or {}, "admin", idem, 1))

    def write(self, write: Write, epoch: int = 1, gen: int = 1) -> int:
        batch = Batch(self.store, gen, epoch)
        rev = batch.add(write)
        if batch.items:
            self.store.append(batch)
            self.store.fold(batch.items)
        return rev

    def grow(self, count: int, size: int = 60) -> int:
        """`count` more revs, in one transaction for each hundred, with the snapshots that become due."""
        while count > 0:
            batch = Batch(self.store, 1, 1)
            first = self.store.state.rev
            for at in range(first, first + min(100, count)):
                batch.add(Write([put("apps", f"a{at % 37}", {"at": at, "text": "x" * size})], {}, "admin", f"grow-{at}", at))
            self.store.append(batch)
            self.store.fold(batch.items)
            count -= len(batch.items)
            if self.store.wants_snapshot():
                self.store.keep_snapshot(self.store.snapshot(1))
        return self.store.state.rev

    def documents(self) -> dict[tuple[str, str], tuple[int, bytes]]:
        return {(c, i): (d.generation, d.body) for c, i, d in self.store.state.documents()}


@pytest.fixture()
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture()
def flip() -> Callable[[Path, int], None]:
    """Flips one bit of the byte at an offset (negative: from the end)."""

    def flip(path: Path, offset: int, mask: int = 0x01) -> None:
        content = bytearray(path.read_bytes())
        content[offset] ^= mask
        path.write_bytes(bytes(content))

    return flip


@pytest.fixture()
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new keyset takes no half second."""
    from services.persistence import tuning

    monkeypatch.setattr(tuning, "tune", lambda *_: CHEAP)


@pytest.fixture
def house() -> Iterator[House]:
    with begun(lambda folder: House(folder, PERSISTENCE)) as house:
        yield house


@pytest.fixture
def hasty() -> Iterator[House]:
    with begun(lambda folder: House(folder, "tests.unit.persistence.hasty:main")) as house:
        yield house


@pytest.fixture()
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts the wall clock forward."""

    def go(hours: float) -> None:
        at = clock.wall_ms() + round(hours * HOUR_MS)
        monkeypatch.setattr(clock, "wall_ms", lambda: at)

    return go

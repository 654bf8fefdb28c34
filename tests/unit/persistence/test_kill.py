"""kill -9 of a real process that writes real files: what was acknowledged is there, and a password always works."""

from __future__ import annotations

import os
import random
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from piccolod.errors import WrongPassword
from services.persistence import keyset as keysets
from services.persistence import ledger as ledgers
from services.persistence.keyset import Keyset
from services.persistence.ledger import Batch, Write
from services.persistence.repair import finish, rebuild, salvage
from services.persistence.state import put
from services.persistence.store import Store
from services.persistence.verify import survey

from .conftest import CHEAP, CLUSTER, Bench

KILLS = 100
WORD = struct.Struct(">q")


@contextmanager
def killed_after(seconds: float, work: Callable[[Callable[[int], None]], None]) -> Iterator[list[int]]:
    """Runs `work` in a process of its own until SIGKILL; yields every number that it acknowledged before it died."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            work(lambda number: void(os.write(write, WORD.pack(number))))
        finally:
            os._exit(1)
    os.close(write)
    try:
        first = os.read(read, WORD.size)
        assert first, "the writer died before its first acknowledgement"
        time.sleep(seconds)  # the length of the life that is cut, not a synchronisation
    finally:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    content = first
    while chunk := os.read(read, 65536):
        content += chunk
    os.close(read)
    yield [number for (number,) in WORD.iter_unpack(content)]


def void(_: object) -> None:
    return None


def test_every_acknowledged_rev_is_there_after_each_of_100_kills(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "SNAPSHOT_EVERY", 20)  # so that snapshots are among what is cut
    bench.close()
    acknowledged = 0

    def work(say: Callable[[int], None]) -> None:
        store = Store(bench.db, CLUSTER, bench.key)
        say(store.state.rev)
        rng = random.Random()
        while True:
            batch = Batch(store, 1, 1)
            for _ in range(rng.choice([1, 1, 1, 2, 5])):
                rev = batch.add(
                    Write([put("apps", f"a{batch._draft.rev}", {"x": "x" * rng.randrange(3000)})], {}, "admin", "", 1)
                )
            store.append(batch)
            store.fold(batch.items)
            say(rev)
            if store.wants_snapshot():
                store.keep_snapshot(store.snapshot(1))

    for number in range(KILLS):
        with killed_after(random.uniform(0.0, 0.02), work) as revs:
            acknowledged = max(acknowledged, *revs)
        found = survey(bench.db, CLUSTER, bench.key)
        assert found.ok, f"kill {number}: {found.problem}"
        store = bench.reopen()
        assert store.state.rev >= acknowledged, (
            f"kill {number}: rev {acknowledged} was acknowledged, {store.state.rev} is there"
        )
        for rev in range(1, acknowledged + 1):
            document = store.state.get("apps", f"a{rev - 1}")
            assert document is not None and document.generation == rev, f"kill {number}: rev {rev} is not what was written"
        bench.close()
    assert acknowledged > KILLS
    assert bench.reopen().snapshot_rev > 0


def test_the_old_or_the_new_password_works_after_each_of_100_kills_during_changes(tmp_path: Path) -> None:
    path = tmp_path / "keyset.json"
    keyset, sdek = keysets.create(CLUSTER, "password 0", CHEAP)
    keyset, recovery = keysets.with_new_recovery(keyset, sdek)
    keysets.save(path, keyset)
    current = 0

    def work(say: Callable[[int], None]) -> None:
        keyset = keysets.load(path)
        assert keyset is not None
        number = current
        while True:
            number += 1
            keyset = keysets.with_password(keyset, sdek, f"password {number}", CHEAP)
            keysets.save(path, keyset)
            say(number)

    def opens(keyset: Keyset, number: int) -> bool:
        try:
            return keysets.open_by_password(keyset, f"password {number}").raw() == sdek.raw()
        except WrongPassword:
            return False

    for number in range(KILLS):
        with killed_after(random.uniform(0.0, 0.01), work) as done:
            last = max(done)
        found = keysets.load(path)
        assert found is not None
        assert keysets.open_by_words(found, recovery).raw() == sdek.raw()
        working = [candidate for candidate in (last, last + 1) if opens(found, candidate)]
        assert len(working) == 1, f"kill {number}: passwords {working} of {last} and {last + 1} work"
        assert not opens(found, last - 1)
        current = working[0]


def test_a_repair_that_is_killed_can_be_repeated_until_it_ends(bench: Bench) -> None:
    bench.grow(400, size=200)
    bench.close()
    content = bytearray(bench.db.read_bytes())
    content[5] ^= 1
    bench.db.write_bytes(bytes(content))

    def work(say: Callable[[int], None]) -> None:
        say(0)
        finish(bench.db)
        if not survey(bench.db, CLUSTER, bench.key).ok:
            rebuild(bench.db, salvage(bench.db, CLUSTER, bench.key))
        while True:
            time.sleep(1)  # until it is killed

    ended, most_s = 0, 0.06
    for _ in range(40):
        with killed_after(random.uniform(0.0, most_s), work):
            pass
        most_s *= 1.0 if ended else 1.15  # a busy machine repairs more slowly
        finish(bench.db)
        if survey(bench.db, CLUSTER, bench.key).ok:
            ended += 1
            store = Store(bench.db, CLUSTER, bench.key)
            assert store.state.rev == 400
            store.close()
            content = bytearray(bench.db.read_bytes())
            content[5] ^= 1
            bench.db.write_bytes(bytes(content))
        assert salvage(bench.db, CLUSTER, bench.key).rev == 400
    assert ended

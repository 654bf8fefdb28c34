"""What a watch tells of keys, as the leadership core and the log take it."""

from __future__ import annotations

from typing import Any

from piccolod.protocol.log import SealedEntry
from services.consensus import wire
from services.consensus.etcd.transaction import Event, KeyValue
from services.consensus.etcd.watch import Revision
from services.consensus.etcd_store import EtcdStore

STORE = EtcdStore(None, "/piccolo/c/")  # type: ignore[arg-type]


def written(key: str, value: bytes) -> Event:
    return Event(False, KeyValue(f"/piccolo/c/{key}", value, 5, 5, 1, 0))


def test_an_entry_of_the_log_comes_along_and_garbage_keeps_its_place() -> None:
    entry = SealedEntry(7, b"header", b"nonce", b"sealed", b"digest")
    events = (written(f"ctl/log/{7:020}", wire.encode(entry)), written(f"ctl/log/{8:020}", b"\xc1"))
    found: list[Any] = [change.record and change.record.value for change in STORE.changes(Revision(5, events))]
    assert found[0] == entry
    assert (found[1].rev, found[1].digest) == (8, b"")


def test_a_key_that_is_none_of_ours_is_passed_over() -> None:
    assert STORE.changes(Revision(5, (written("ctl/log/x", b"y"), written("ctl/log/", b"y"), written("else", b"y")))) == ()

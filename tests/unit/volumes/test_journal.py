from __future__ import annotations

from pathlib import Path

import pytest

from services.volumes.journal import Journal, Record
from services.volumes.plan import VolumeId

NOTES = VolumeId("notes", "data")


def record(boot_id: str = "this-boot", token: int = 1) -> Record:
    return Record(app="notes", volume="data", pid=7, started=99, boot_id=boot_id, token=token)


def test_a_record_is_read_back_until_it_is_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "this-boot")
    assert journal.read(NOTES) is None and list(journal.records()) == []
    journal.write(record())
    journal.write(record(token=2))
    assert journal.read(NOTES) == record(token=2)
    assert list(journal.records()) == [record(token=2)]
    journal.forget(NOTES)
    journal.forget(NOTES)
    assert journal.read(NOTES) is None


def test_a_record_of_an_earlier_boot_names_nobody(tmp_path: Path) -> None:
    Journal(tmp_path, "last-boot").write(record("last-boot"))
    assert list(Journal(tmp_path, "this-boot").records()) == []


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"app": 1}', b"\xff\xfe"])
def test_garbage_is_no_record(tmp_path: Path, garbage: bytes) -> None:
    journal = Journal(tmp_path, "this-boot")
    journal.write(record())
    (tmp_path / "notes.data.json").write_bytes(garbage)
    assert journal.read(NOTES) is None
    assert list(journal.records()) == []


def test_a_record_under_another_volumes_name_is_not_believed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "this-boot")
    journal.write(record())
    (tmp_path / "notes.data.json").rename(tmp_path / "other.data.json")
    assert journal.read(VolumeId("other", "data")) is None

"""What a node remembers of etcd: whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from piccolod.leadership.events import Memory
from services.consensus.memory import MemoryFile


def test_it_is_read_as_it_was_written_and_closed_to_others(tmp_path: Path) -> None:
    file = MemoryFile(tmp_path / "seen.json")
    assert file.read() is None
    for memory in (Memory(2**64 - 1, 7, 3), Memory(1, 8, 3, restored=True)):
        file.write(memory)
        assert file.read() == memory
    assert (tmp_path / "seen.json").stat().st_mode & 0o077 == 0


def test_one_without_the_mark_of_a_restored_etcd_is_read(tmp_path: Path) -> None:
    (tmp_path / "seen.json").write_text('{"cluster_id": 5, "rev": 7, "gen": 3}')
    assert MemoryFile(tmp_path / "seen.json").read() == Memory(5, 7, 3)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cluster_id": "x", "rev": 7, "gen": 3}'])
def test_what_cannot_be_read_is_no_memory(tmp_path: Path, content: str) -> None:
    (tmp_path / "seen.json").write_text(content)
    assert MemoryFile(tmp_path / "seen.json").read() is None


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path: Path) -> None:
    file = MemoryFile(tmp_path / "seen.json")
    file.write(Memory(5, 7, 3))
    (tmp_path / "seen.json.new").mkdir()
    with pytest.raises(OSError):
        file.write(Memory(5, 8, 3))
    assert file.read() == Memory(5, 7, 3)

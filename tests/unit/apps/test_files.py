"""Files that containers see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from piccolod.errors import Failed
from services.apps import files


def test_a_write_that_takes_a_part_at_a_time_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:3])))
    files._write(tmp_path / "secret", b"0123456789", 0o444)
    assert (tmp_path / "secret").read_bytes() == b"0123456789"


def test_a_write_without_room_is_an_error_and_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    files._write(tmp_path / "secret", b"old", 0o444)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Failed, match="No space left"):
        files._write(tmp_path / "secret", b"new", 0o444)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("secret", b"old")]

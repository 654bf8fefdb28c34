"""A file is whole, old or new: on a disk that fills up in the middle, and after a death at each step."""

from __future__ import annotations

import os
import resource
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from piccolod import durable

OLD, NEW = b"old" * 100, b"new" * 3000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "it"
    durable.replace(file, OLD)
    return file


def in_child(work: Callable[[], None]) -> int:
    """How a process that did the work ended."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_disk_that_takes_a_part_leaves_the_old_file_and_no_draft(file: Path) -> None:
    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # a write beyond is cut there, as at the end of a disk
        with pytest.raises(OSError, match="File too large"):
            durable.replace(file, NEW)

    assert in_child(fill) == 0
    assert file.read_bytes() == OLD
    assert [each.name for each in file.parent.iterdir()] == ["it"]


@pytest.mark.parametrize("step", ["open", "fchmod", "write", "fsync", "replace"])
def test_a_death_before_a_step_leaves_the_old_file(file: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def die_there() -> None:
        monkeypatch.setattr(os, step, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        durable.replace(file, NEW)

    assert in_child(die_there) == -signal.SIGKILL
    assert file.read_bytes() == OLD
    durable.replace(file, NEW)  # over what the dead one left
    assert file.read_bytes() == NEW


def test_the_mode_does_not_hang_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        durable.replace(tmp_path / "open", b"", mode=0o644)
        durable.replace(tmp_path / "shut", b"")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("open", "shut")] == [0o644, 0o600]

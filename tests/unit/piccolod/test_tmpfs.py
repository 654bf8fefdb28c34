"""File systems in memory are found under every name of their folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod import tmpfs
from services.apps.files import AppFiles
from tests.node import unmount_below

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def linked() -> Iterator[Path]:
    """A link to a folder."""
    folder = Path(tempfile.mkdtemp(prefix="mem"))
    (folder / "real").mkdir()
    (folder / "link").symlink_to(folder / "real")
    try:
        yield folder / "link"
    finally:
        unmount_below(folder)
        shutil.rmtree(folder)


def test_one_is_seen_through_a_link(linked: Path) -> None:
    (linked / "memory").mkdir()
    tmpfs.mount(linked / "memory", "1m")
    assert tmpfs.is_mounted(linked / "memory")
    assert tmpfs.points_below(linked / "memory") == [linked / "memory"]
    assert tmpfs.points_below(linked) == [linked / "memory"]


def test_files_of_apps_have_one_however_often_something_is_written(linked: Path) -> None:
    files = AppFiles(linked / "app-files")
    for _ in range(3):
        files.write("notes", {"token": b"x"}, None)
    assert tmpfs.points_below(linked) == [linked / "app-files"]
    files.remove("notes")
    assert tmpfs.points_below(linked) == []

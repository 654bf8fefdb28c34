from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod.paths import Paths
from services.volumes import gocryptfs, mounts
from tests.unit.volumes import seen


@pytest.fixture
def paths() -> Iterator[Paths]:
    """The folders of a node; whatever a test left there is killed and unmounted."""
    if os.geteuid() != 0:
        pytest.skip("volumes need root")
    if missing := gocryptfs.why_not():
        pytest.skip(missing)
    folder = Path(tempfile.mkdtemp(prefix="vol"))
    made = Paths(state=folder / "state", run=folder / "run")
    made.state.mkdir()
    made.run.mkdir()
    yield made
    for pid in seen.children_of(folder):
        seen.end(pid)
    for mount in reversed(mounts.here()):
        if Path(mount.point).is_relative_to(folder):
            mounts.detach_dead(Path(mount.point))
    left = [mount.point for mount in mounts.here() if Path(mount.point).is_relative_to(folder)]
    shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"mounts are left: {left}"

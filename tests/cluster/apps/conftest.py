"""One image for all, and a machine of its own for each test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.apps.world import IMAGE, Machine


@pytest.fixture(scope="package")
def images() -> Iterator[Path]:
    """A folder whose podman storage holds the test image: copied, not rebuilt, for each machine."""
    folder = Path(tempfile.mkdtemp(prefix="pa-", dir="/tmp"))
    machine = Machine(folder)
    try:
        machine.build()
        archive = folder / "image.tar"
        machine.run_podman("save", "-q", "-o", str(archive), IMAGE)
        yield archive
    finally:
        machine.close()


@pytest.fixture
def machine(images: Path) -> Iterator[Machine]:
    machine = Machine(Path(tempfile.mkdtemp(prefix="pa-", dir="/tmp")))
    try:
        machine.run_podman("load", "-q", "-i", str(images))
        machine.start()
        yield machine
    finally:
        machine.close()

"""The demo: manifests that are accepted without a warning, and a page that tells who answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from piccolod import tmpfs
from services.apps.validate import validate
from tests.node import unmount_below

DEMO = Path(__file__).parents[3] / "deploy/demo"


@pytest.mark.parametrize("name", ["app", "counter"])
def test_the_manifest_is_accepted_as_it_is(name: str) -> None:
    checked = validate((DEMO / f"{name}.yaml").read_text())
    assert checked.manifest.name == {"app": "hello", "counter": "counter"}[name]
    assert list(checked.warnings) == []


def test_the_image_that_the_manifests_name_is_the_one_that_is_built() -> None:
    script = (DEMO / "load.sh").read_text()
    for name in ("app", "counter"):
        assert validate((DEMO / f"{name}.yaml").read_text()).manifest.image in script


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None or os.geteuid() != 0:
        pytest.skip("needs root and busybox")
    root = tmp_path / "root"
    shutil.copytree(DEMO / "rootfs", root)
    shutil.copy(busybox, root / "bin/busybox")
    (root / "dev").mkdir()
    (root / "dev/null").touch()
    return root


def page(rootfs: Path) -> str:
    return subprocess.run(
        [shutil.which("chroot") or "chroot", str(rootfs), "/www/cgi-bin/index.cgi"],
        env={"PATH": "/bin"}, capture_output=True, text=True, timeout=10, check=True,
    ).stdout  # fmt: skip


def test_the_page_names_the_container_and_keeps_no_count_without_a_volume(rootfs: Path) -> None:
    text = page(rootfs)
    assert text.startswith("Content-Type: text/html") and os.uname().nodename in text
    assert "Visit number" not in text


def test_visits_are_counted_in_the_volume(rootfs: Path) -> None:
    (rootfs / "data").mkdir()
    assert "Visit number <b>1</b>" in page(rootfs)
    assert "Visit number <b>2</b>" in page(rootfs)
    (rootfs / "data/visits").write_text("")
    assert "Visit number <b>1</b>" in page(rootfs)


@pytest.mark.root
@pytest.mark.podman
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("podman") is None or shutil.which("busybox") is None,
    reason="needs root, podman and busybox",
)
def test_the_image_is_built_where_no_piccolod_runs_and_no_mount_is_left() -> None:
    with tempfile.TemporaryDirectory(prefix="demo") as folder:
        try:
            built = subprocess.run(
                ["sh", DEMO / "load.sh", sys.executable, folder, "8080"],
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert built.returncode == 0, built.stderr
            assert "is ready" in built.stdout
            assert "localhost/piccolo-demo:1" in next(Path(folder, "state/containers").glob("*-images/images.json")).read_text()
            assert tmpfs.points_below(Path(folder)) == []
        finally:
            unmount_below(Path(folder))

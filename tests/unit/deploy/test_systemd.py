"""The files for the service manager are what systemd itself accepts, and name what the kernel table names."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from piccolod import kernel

UNITS = Path(__file__).parents[3] / "deploy" / "systemd"


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def need(program: str) -> None:
    """Skips where there is no systemd at all; where there is, its tools belong to it."""
    if shutil.which(program) is None:
        assert not Path("/usr/lib/systemd/systemd").exists(), f"systemd is installed without {program}"
        pytest.skip("systemd is not installed")


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    need("systemd-analyze")
    # `verify` wants the program to exist; where it is installed is the admin's.
    name = unit.name.replace("@", "@0")
    (tmp_path / name).write_text(re.sub(r"/opt/piccolod/bin/\S+", "/bin/true", unit.read_text()))
    done = run("systemd-analyze", "verify", "--man=no", str(tmp_path / name))
    complaints = [line for line in done.stderr.splitlines() if name in line]
    assert not complaints and done.returncode == 0, done.stderr


def test_systemd_accepts_the_users(tmp_path: Path) -> None:
    need("systemd-sysusers")
    (tmp_path / "etc").mkdir()
    done = run("systemd-sysusers", f"--root={tmp_path}", str(UNITS / "piccolod.sysusers.conf"))
    assert done.returncode == 0, done.stderr
    names = {line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    assert {spec.user for spec in kernel.MODULES} - {"root"} <= names


def test_systemd_makes_the_folders(tmp_path: Path) -> None:
    if shutil.which("systemd-tmpfiles") is None:
        pytest.skip("systemd-tmpfiles is not installed")
    done = run("systemd-tmpfiles", f"--root={tmp_path}", "--create", str(UNITS / "piccolod.tmpfiles.conf"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/piccolod").is_dir() and (tmp_path / "var/lib/piccolod").is_dir()


def test_the_service_leaves_containers_and_leashes_alive() -> None:
    text = (UNITS / "piccolod.service").read_text()
    for line in ("Type=notify", "KillMode=process", "Restart=always", "RuntimeDirectoryPreserve=yes"):
        assert line in text.splitlines()
    assert re.search(r"^WatchdogSec=\d+$", text, re.M)
    assert re.search(r"^ExecStopPost=\S+ --after-crash$", text, re.M)

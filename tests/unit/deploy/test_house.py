"""The Makefile and its scripts keep their promises where nothing needs to be installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import pytest

from piccolod import config

ROOT = Path(__file__).parents[3]


def sh(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", *argv], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False
    )


def written(state: Path, port: str = "8080") -> subprocess.CompletedProcess[str]:
    return sh("deploy/write-config.sh", sys.executable, str(state), port)


def test_help_names_every_target_of_the_readme() -> None:
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
    for target in ("deps", "run", "test", "lint", "bench", "demo-image", "clean"):
        assert f"make {target} " in text


def test_the_written_configuration_is_one_that_piccolod_reads() -> None:
    with tempfile.TemporaryDirectory(prefix="h") as short:  # a unix socket's path has little room
        state = Path(short) / 'a "quoted" folder'
        assert written(state, "18080").returncode == 0
        read = config.load(state / "piccolod.toml")
        assert read.paths.state == state / "state"
        assert read.paths.run == state / "run"
        assert read.api.listen == ["127.0.0.1:18080"]


def test_another_port_moves_the_api_of_an_existing_state(tmp_path: Path) -> None:
    written(tmp_path, "8080")
    written(tmp_path, "8081")
    assert tomllib.loads((tmp_path / "piccolod.toml").read_text())["api"]["listen"] == ["127.0.0.1:8081"]


def test_an_edited_configuration_is_kept(tmp_path: Path) -> None:
    (tmp_path / "piccolod.toml").write_text("[api]\nlisten = ['127.0.0.1:9']\n")
    done = written(tmp_path, "8081")
    assert "as it is" in done.stderr
    assert tomllib.loads((tmp_path / "piccolod.toml").read_text())["api"]["listen"] == ["127.0.0.1:9"]


@pytest.mark.parametrize("port", ["0", "65536", "http", ""])
def test_a_port_that_is_none_is_named(tmp_path: Path, port: str) -> None:
    done = written(tmp_path, port)
    assert done.returncode != 0 and "is not a port" in done.stderr


def test_nothing_missing_is_quiet_and_quick() -> None:
    sh("deploy/deps.sh", "run", "--quiet")
    began = time.monotonic()
    done = sh("deploy/deps.sh", "run", "--quiet")
    assert done.returncode == 0 and done.stdout == "" and done.stderr == ""
    assert time.monotonic() - began < 5


def test_an_unknown_set_of_packages_is_refused() -> None:
    done = sh("deploy/deps.sh", "everything")
    assert done.returncode == 1 and "unknown set" in done.stderr


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\ncase "$*" in *ensurepip*) exit 0;; *--version*) echo Python 3.9.2;; *) exit 1;; esac\n')
    old.chmod(0o755)
    done = sh("deploy/deps.sh", "run", "--quiet", PYTHON=str(old))
    assert done.returncode == 1 and "3.9.2 is too old" in done.stderr


def test_every_script_is_valid_for_the_plain_shell() -> None:
    scripts = [*ROOT.glob("deploy/**/*.sh"), ROOT / ".ci/run", ROOT / "deploy/demo/rootfs/bin/serve"]
    assert len(scripts) > 5
    for script in scripts:
        shell = [shutil.which("busybox") or "busybox", "sh"] if script.name == "serve" else ["sh"]
        done = subprocess.run([*shell, "-n", str(script)], capture_output=True, text=True, timeout=10, check=False)
        assert done.returncode == 0, done.stderr

"""The command `piccolod`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.supervisor.conftest import ROOT


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="main") as made:
        yield Path(made)


def piccolod(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "piccolod", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )


def config(folder: Path, more: str = "") -> Path:
    file = folder / "piccolod.toml"
    file.write_text(f'[node]\nname = "n1"\nstate_dir = "{folder}/state"\nrun_dir = "{folder}/run"\n{more}')
    return file


def test_a_configuration_without_mistakes_is_said_to_be_one(folder):
    done = piccolod("--config", config(folder), "--check-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert "no mistakes" in done.stdout


def test_every_mistake_of_a_configuration_has_its_own_line_and_the_exit_code_is_8(folder):
    done = piccolod("--config", config(folder, 'adress = "x"\n[api]\ntls = 7\n'), "--check-config")
    assert done.returncode == 8
    assert "  node.adress: unknown key, did you mean `address`?" in done.stderr.splitlines()
    assert any(line.startswith("  api.tls: must be a string") for line in done.stderr.splitlines())


def test_a_configuration_that_is_not_there_is_named_and_the_exit_code_is_8(folder):
    done = piccolod("--config", folder / "nowhere.toml")
    assert done.returncode == 8
    assert "nowhere.toml" in done.stderr


def test_after_crash_without_a_node_has_nothing_to_do(folder):
    done = piccolod("--config", config(folder), "--after-crash")
    assert done.returncode == 0
    assert "nothing to do" in done.stdout


def test_a_folder_that_cannot_be_made_is_named_with_a_hint(folder):
    (folder / "state").write_text("a file")
    done = piccolod("--config", config(folder))
    assert done.returncode == 1
    assert "cannot prepare a folder of this node" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_shown(folder):
    done = piccolod("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("piccolod ")

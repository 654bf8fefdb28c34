"""The messages of etcd: which file comes first does not matter, and who needs none of them pays for none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.node import ROOT

PACKAGE = ROOT / "services/consensus/etcd"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["stubs", "status", "members", "upkeep"])
def test_each_can_be_the_first_that_is_imported(name):
    done = python(f"import services.consensus.etcd.{name}, sys; assert 'etcd3' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_no_other_file_imports_protobuf():
    importers = [file.stem for file in PACKAGE.glob("*.py") if "google.protobuf" in file.read_text()]
    assert importers == ["stubs"]


def test_what_the_zygote_imports_for_all_modules_knows_no_grpc():
    code = """
import sys
from piccolod.kernel import MODULES
for row in MODULES:
    __import__(row.target.partition(":")[0])
print([name for name in ("grpc", "google.protobuf", "etcd3") if name in sys.modules])
"""
    assert python(code).stdout.strip() == "[]"

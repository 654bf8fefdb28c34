from __future__ import annotations

import subprocess
import sys

import pytest

from piccolod import lean
from tests.node import ROOT

# What libraries would bring along, 8 MiB of it, and no module of ours calls.
UNUSED = (
    "rich",
    "chardet",
    "charset_normalizer",
    "click",
    "uvicorn.main",
    "uvicorn.supervisors",
    "attr",
    "attrs",
    "yaml",
    "pdb",
)
IMPORT_ALL = """
import sys
from piccolod.kernel import MODULES, Spawn
from piccolod.supervisor import entry
for spec in MODULES:
    if spec.spawn is Spawn.FORK:
        entry.resolve(spec.target)
print(*sys.modules)
"""


def test_the_zygote_holds_nothing_that_no_module_uses() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert {"litestar", "uvicorn.config", "requests", "podman.api.client"} <= imported
    assert imported.isdisjoint(UNUSED)
    assert done.stderr == ""


def test_without_a_library_it_is_as_if_it_were_not_installed_and_afterwards_it_is() -> None:
    sys.modules.pop("colorsys", None)
    with lean.without("colorsys"), pytest.raises(ImportError):
        import colorsys
    import colorsys

    assert colorsys.rgb_to_hsv(1.0, 1.0, 1.0) == (0.0, 0.0, 1.0)
    with lean.without("colorsys"):
        pass
    assert sys.modules["colorsys"] is colorsys


def test_a_hollow_library_can_be_imported_from_and_afterwards_it_is_the_real_one() -> None:
    sys.modules.pop("colorsys", None)
    with lean.hollow("colorsys"):
        import colorsys as hollow
        from colorsys import rgb_to_hsv

        assert hollow.anything is not hollow.something
        with pytest.raises(TypeError):
            rgb_to_hsv(1.0, 1.0, 1.0)
    import colorsys

    assert colorsys.rgb_to_hsv(1.0, 1.0, 1.0) == (0.0, 0.0, 1.0)

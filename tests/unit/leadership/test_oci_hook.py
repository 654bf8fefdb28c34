from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from piccolod.leadership.oci_hook import term_annotations, write_hook
from piccolod.leadership.page import PageWriter, Term
from piccolod.paths import Paths

from .conftest import a_page


def run_hook(paths: Paths, annotations: dict[str, Any] | None, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the hook exactly as its definition says."""
    bundle = paths.run / "bundle"
    bundle.mkdir(exist_ok=True)
    if annotations is not None:
        (bundle / "config.json").write_text(json.dumps({"ociVersion": "1.0.2", "annotations": annotations}))
    hook = json.loads(write_hook(paths, sys.executable).read_text())["hook"]
    state = json.dumps({"ociVersion": "1.0.2", "id": "c1", "status": "creating", "pid": 4242, "bundle": str(bundle)})
    return subprocess.run(
        hook["args"], executable=hook["path"], env={}, input=state if stdin is None else stdin,
        capture_output=True, text=True, timeout=hook["timeout"], check=False,
    )  # fmt: skip


def test_the_open_term_may_start(paths: Paths, page_writer: PageWriter) -> None:
    page_writer.write(a_page({"app:notes": Term(7, 1)}))
    done = run_hook(paths, term_annotations("app:notes", 7, 1))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"app:notes": Term(8, 2)}, "another term has begun"),
        ({"app:notes": Term(7, 2)}, "another term has begun"),  # in an etcd that was begun anew
        ({"app:notes": Term(7, 1, closing=True)}, "its term is being closed"),
        ({}, "does not lead it"),
    ],
)
def test_a_start_that_was_queued_for_too_long_does_nothing(
    paths: Paths, page_writer: PageWriter, terms: dict[str, Term], reason: str
) -> None:
    page_writer.write(a_page(terms))
    done = run_hook(paths, term_annotations("app:notes", 7, 1))
    assert done.returncode == 1 and reason in done.stderr


def test_a_passed_deadline_refuses(paths: Paths, page_writer: PageWriter) -> None:
    page_writer.write(a_page({"app:notes": Term(7, 1)}, hard_at=1.0))
    assert "the deadline has passed" in run_hook(paths, term_annotations("app:notes", 7, 1)).stderr


@pytest.mark.parametrize(
    "annotations",
    [None, {}, {"io.piccolo.resource": "app:notes"}, {**term_annotations("app:notes", 7, 1), "io.piccolo.token": "x"}],
)
def test_a_container_that_names_no_term_is_refused(
    paths: Paths, page_writer: PageWriter, annotations: dict[str, str] | None
) -> None:
    page_writer.write(a_page({"app:notes": Term(7, 1)}))
    done = run_hook(paths, annotations)
    assert done.returncode == 1 and "names no term" in done.stderr


@pytest.mark.parametrize("stdin", ["", "garbage", "null", "[]"])
def test_a_state_that_is_garbage_is_refused(paths: Paths, page_writer: PageWriter, stdin: str) -> None:
    page_writer.write(a_page({"app:notes": Term(7, 1)}))
    assert run_hook(paths, term_annotations("app:notes", 7, 1), stdin).returncode == 1


def test_without_a_page_nothing_starts(paths: Paths) -> None:
    done = run_hook(paths, term_annotations("app:notes", 7, 1))
    assert done.returncode == 1 and "absent" in done.stderr


def test_the_definition_is_what_podman_reads(paths: Paths) -> None:
    file = write_hook(paths, sys.executable)
    assert [path.name for path in paths.oci_hooks.iterdir()] == [file.name] and file.suffix == ".json"
    definition = json.loads(file.read_text())
    assert definition["version"] == "1.0.0" and definition["stages"] == ["createRuntime"]
    assert Path(definition["hook"]["path"]).is_absolute()
    ((key, value),) = definition["when"]["annotations"].items()
    assert re.search(key, "io.piccolo.resource") and re.search(value, "app:notes")
    assert not re.search(key, "io.piccolo.resources") and not re.search(key, "ioxpiccoloxresource")

"""What the documentation says can be done: links lead somewhere, commands exist, examples are valid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from piccolod.cli.main import cli
from services.apps.validate import validate

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = sorted(file for folder in ("piccolod", "services", "broker") for file in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_test_that_a_promise_names_exists() -> None:
    text = (ROOT / "docs/guarantees.md").read_text()
    named = re.findall(r"`(tests/[\w/.*]+)`", text)
    assert named
    for path in named:
        assert list(ROOT.glob(path)), path
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert list((ROOT / "tests").rglob(name)), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_piccoloctl_command_exists_with_its_options(page: Path) -> None:
    for line in re.findall(r"(?:^ *# |`)(piccoloctl [^`\n]*)", page.read_text(), re.MULTILINE):
        check_exists(line)


def test_no_hint_sends_anybody_to_a_command_that_does_not_exist() -> None:
    found = [line for file in SOURCES for line in re.findall(r"`(piccoloctl [a-z][^`\n]*)`", file.read_text())]
    assert len(found) > 50
    for line in found:
        check_exists(line)


def check_exists(line: str) -> None:
    words = shlex.split(line.split("#")[0].split(";")[0].split(" <")[0], comments=False)[1:]
    command: click.Command = cli
    context = click.Context(cli)
    while words and isinstance(command, click.Group) and not words[0].startswith("-"):
        for name in words.pop(0).split("|"):
            found = command.get_command(context, name)
            assert found is not None, f"{line}: no command {name}"
        command, context = found, click.Context(found, parent=context)
    options = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word in options, f"{line}: {word} is no option of {command.name}"


def test_the_documented_manifest_is_valid() -> None:
    text = (ROOT / "docs/manifest.md").read_text().split("```yaml\n")[1].split("```")[0]
    assert validate(text).manifest.name == "notes"

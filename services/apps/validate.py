"""A manifest's text in, a checked manifest out, or every mistake in it."""

from __future__ import annotations

from dataclasses import dataclass

from piccolod.errors import Invalid, Problem
from services.apps import json_source, yaml_source
from services.apps.manifest import Manifest
from services.apps.reader import Reading, read
from services.apps.rules import Surroundings, check
from services.apps.source import Unreadable


@dataclass(frozen=True, slots=True)
class Checked:
    manifest: Manifest
    warnings: tuple[str, ...]


def validate(text: str, form: str = "yaml", around: Surroundings | None = None) -> Checked:
    """Raises Invalid with all problems, in the order of the text. `form` is yaml or json."""
    parse = {"yaml": yaml_source.parse, "json": json_source.parse}.get(form)
    if parse is None:
        raise Invalid(f"a manifest is yaml or json, not {form!r}")
    try:
        root, problems = parse(text)
    except Unreadable as error:
        raise _invalid([error.problem]) from error
    reading = Reading(problems=problems)
    manifest = read(root, reading)
    warnings = check(manifest, reading, around or Surroundings())
    if reading.problems:
        raise _invalid(sorted(reading.problems, key=lambda p: (p.line, p.column)))
    return Checked(manifest, tuple(warnings))


def _invalid(problems: list[Problem]) -> Invalid:
    count = len(problems)
    return Invalid(
        f"the manifest has {count} mistake{'s' if count > 1 else ''}",
        hint="`piccoloctl apps schema` prints a JSON Schema for your editor",
        errors=tuple(problems),
    )

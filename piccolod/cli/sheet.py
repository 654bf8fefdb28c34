"""One object as lines for people: names on the left, what belongs to a name indented below it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from piccolod.cli.table import coloured, cut, printable
from piccolod.cli.times import moment
from piccolod.units import format_duration, format_size

_STATES: Final = frozenset({"state", "level", "attached", "mode", "role"})


def sheet(document: dict[str, Any], width: int = 0) -> str:
    return "\n".join(_lines(document, 0, width))


def _lines(document: dict[str, Any], depth: int, width: int) -> Iterator[str]:
    names = {key: _label(key) for key in document}
    wide = max((len(label) for label in names.values()), default=0)
    for key, value in document.items():
        indent = "  " * depth
        if isinstance(value, dict) and value:
            yield f"{indent}{names[key]}"
            yield from _lines(value, depth + 1, width)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{indent}{names[key]}"
            for item in value:
                yield "  " * (depth + 1) + ", ".join(f"{_label(name)} {_text(name, part)}" for name, part in item.items())
        else:
            text = _text(key, value)
            start = f"{indent}{names[key].ljust(wide)}  "
            shown = cut(text, max(8, width - len(start))) if width else text
            yield start + (coloured(shown) if key in _STATES else shown)


def _label(key: str) -> str:
    for unit in ("_bytes", "_ms", "_s"):
        key = key.removesuffix(unit)
    return printable(key.replace("_", " "))


def _text(key: str, value: object) -> str:
    """Sizes, durations and times by the ending of their name."""
    if value is None or value == "" or value in ([], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(printable(str(item)) for item in value)
    if isinstance(value, int | float):
        if key.endswith("_bytes"):
            return format_size(int(value))
        if key.endswith("_ms") and value > 10**11:
            return moment(int(value))
        if key.endswith("_ms"):
            return f"{value:g} ms"
        if key.endswith("_s"):
            return format_duration(float(value))
    return printable(str(value))

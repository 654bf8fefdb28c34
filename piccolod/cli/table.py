"""Rows as aligned text: pure, no colours of its own but those that a column asks for."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

# good, on the way, bad, at rest
_COLOURS: Final = {
    **dict.fromkeys(("running", "ready", "ok", "rw", "local", "unlocked", "leader", "true"), "green"),
    **dict.fromkeys(
        ("pending", "pulling", "starting", "stopping", "degraded", "warn", "hold", "locked", "stopped-late", "stale"), "yellow"
    ),
    **dict.fromkeys(("failed", "error", "crit", "crashlooping", "dead", "hung", "false"), "red"),
    **dict.fromkeys(("stopped", "closed", "no", "-"), "bright_black"),
}


@dataclass(frozen=True, slots=True)
class Column:
    """`wide`: only with `-o wide`. `state`: coloured by its word."""

    title: str
    text: Callable[[Any], object]
    wide: bool = False
    state: bool = False


def printable(text: str) -> str:
    """Without what would move the cursor or colour the terminal: names and reasons come from outside."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char in "\n\t\r" else f"\\x{ord(char):02x}" for char in text)


def width_of(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def cut(text: str, width: int) -> str:
    """At most `width` cells, with an ellipsis where something is missing."""
    if width_of(text) <= width:
        return text
    while text and width_of(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def coloured(text: str, word: str = "") -> str:
    colour = _COLOURS.get((word or text).lower().split(" ")[0])
    return click.style(text, fg=colour) if colour else text


def render(rows: Iterable[Any], columns: Sequence[Column], *, wide: bool = False, width: int = 0) -> str:
    """`width` > 0: lines are cut there (a terminal); 0: whole lines (a pipe)."""
    shown = [column for column in columns if wide or not column.wide]
    cells = [[_cell(column.text(row)) for column in shown] for row in rows]
    widths = [max([width_of(column.title), *(width_of(line[i]) for line in cells)]) for i, column in enumerate(shown)]
    lines = [_line([click.style(column.title, bold=True) for column in shown], [c.title for c in shown], widths)]
    for line in cells:
        if width:
            before = sum(widths[:-1]) + 2 * (len(widths) - 1)
            line[-1] = cut(line[-1], max(8, width - before))
        lines.append(_line([coloured(text) if c.state else text for c, text in zip(shown, line, strict=True)], line, widths))
    return "\n".join(lines)


def table(columns: Sequence[Column], empty: str = "") -> Callable[[list[dict[str, Any]], bool, int], str]:
    """How a list is shown: its rows, or `empty` where there is none and something is to be said of that."""

    def shown(found: list[dict[str, Any]], wide: bool, width: int) -> str:
        return render(found, columns, wide=wide, width=width) if found or not empty else empty

    return shown


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value)) if value not in (None, "") else "-"


def _line(styled: list[str], plain: list[str], widths: list[int]) -> str:
    """The last column is not filled up: no blanks at the ends of lines."""
    parts = [text + " " * (width - width_of(bare)) for text, bare, width in zip(styled, plain, widths, strict=True)]
    parts[-1] = styled[-1]
    return "  ".join(parts)

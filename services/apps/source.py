"""A manifest's text as a tree in which every node knows its line and column, whatever the format.

Nothing is interpreted here: `yes`, `012` and `1.10` are still the text that a person wrote. Which node becomes a number
or a truth value is decided by the field that it is for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from piccolod.errors import Problem

MAX_TEXT_BYTES: Final = 256 * 1024
MAX_EXPANDED_BYTES: Final = 64 * 1024
# Ten times the largest manifest that anybody wrote by hand; at 19 us a node (measured) it bounds reading to 0.2 s.
MAX_NODES: Final = 10_000
MAX_DEPTH: Final = 32


@dataclass(slots=True)
class Node:
    line: int
    column: int
    size: int = 0  # bytes of text below, aliases expanded
    height: int = 0


@dataclass(slots=True)
class Scalar(Node):
    """`plain`: written without quotes, so that it may be meant as a number, a truth value or nothing."""

    text: str = ""
    plain: bool = False

    @property
    def is_nothing(self) -> bool:
        return self.plain and self.text in ("", "~", "null", "Null", "NULL")


@dataclass(slots=True)
class Sequence(Node):
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Mapping(Node):
    entries: list[tuple[Scalar, Node]] = field(default_factory=list)

    def get(self, key: str) -> Node | None:
        return next((node for name, node in self.entries if name.text == key), None)


class Unreadable(Exception):
    """The text cannot be a manifest at all; what else is wrong with it cannot be told."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.problem = Problem("", message, line, column)


def check_size(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise Unreadable("the manifest is not UTF-8") from error
    if size > MAX_TEXT_BYTES:
        raise Unreadable(f"the manifest has {size} bytes, the limit is {MAX_TEXT_BYTES}")
    if not text.strip():
        raise Unreadable("the manifest is empty")


def finish_sequence(node: Sequence) -> None:
    node.size = sum(item.size for item in node.items)
    node.height = 1 + max((item.height for item in node.items), default=0)


def finish_mapping(node: Mapping, problems: list[Problem], path: str) -> None:
    """Completes a mapping: names keys that are there twice, of which the first one counts."""
    seen: dict[str, Scalar] = {}
    kept: list[tuple[Scalar, Node]] = []
    for key, value in node.entries:
        if (first := seen.get(key.text)) is not None:
            where = f"{path}.{key.text}" if path else key.text
            problems.append(Problem(where, f"is there twice: first in line {first.line}", key.line, key.column))
            continue
        seen[key.text] = key
        kept.append((key, value))
    node.entries = kept
    node.size = sum(key.size + value.size for key, value in kept)
    node.height = 1 + max((value.height for _, value in kept), default=0)

"""JSON as the same tree of places."""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Final

from piccolod.errors import Problem
from services.apps.source import (
    MAX_DEPTH,
    MAX_NODES,
    Mapping,
    Node,
    Scalar,
    Sequence,
    Unreadable,
    check_size,
    finish_mapping,
    finish_sequence,
)

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_WORD: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?|true|false|null")


def parse(text: str) -> tuple[Mapping, list[Problem]]:
    """The root of the manifest, and keys that are there twice. Raises Unreadable."""
    check_size(text)
    parser = _Parser(text)
    root = parser.value("")
    if parser.peek():
        raise parser.wrong("more text after the end of the document")
    if not isinstance(root, Mapping):
        raise Unreadable("a manifest is an object with a `name`", root.line, root.column)
    return root, parser.problems


class _Parser:
    """Recursive, at most MAX_DEPTH calls deep."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._nodes = 0
        self._newlines = [-1, *(match.start() for match in re.finditer("\n", text))]
        self._line = 0
        self.problems: list[Problem] = []

    def value(self, path: str) -> Node:
        character = self.peek()
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self.wrong(f"more than {MAX_NODES} values")
        if character == '"':
            return self._string()
        if character in ("{", "["):
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise self.wrong(f"more than {MAX_DEPTH} levels deep")
            node = self._object(path) if character == "{" else self._array(path)
            self._depth -= 1
            return node
        return self._word()

    def peek(self) -> str:
        """The next character that counts; empty at the end."""
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return self._text[self._at : self._at + 1]

    def wrong(self, message: str) -> Unreadable:
        return Unreadable(f"not JSON: {message}", *self._place())

    def _place(self) -> tuple[int, int]:
        while self._line + 1 < len(self._newlines) and self._newlines[self._line + 1] < self._at:
            self._line += 1
        return self._line + 1, self._at - self._newlines[self._line]

    def _expect(self, character: str) -> None:
        if self.peek() != character:
            raise self.wrong(f"expected `{character}`")
        self._at += 1

    def _string(self) -> Scalar:
        line, column = self._place()
        try:
            text, self._at = scanstring(self._text, self._at + 1, True)
            size = len(text.encode()) + 1
        except json.JSONDecodeError as error:
            self._at = error.pos
            raise self.wrong(error.msg) from error
        except UnicodeEncodeError as error:
            raise self.wrong("half a surrogate pair") from error
        return Scalar(line, column, size=size, text=text)

    def _word(self) -> Scalar:
        line, column = self._place()
        match = _WORD.match(self._text, self._at)
        if match is None:
            raise self.wrong("expected a value")
        self._at = match.end()
        return Scalar(line, column, size=len(match[0]) + 1, text=match[0], plain=True)

    def _array(self, path: str) -> Sequence:
        node = Sequence(*self._place())
        self._at += 1
        if self.peek() != "]":
            node.items.append(self.value(f"{path}[0]"))
            while self.peek() == ",":
                self._at += 1
                node.items.append(self.value(f"{path}[{len(node.items)}]"))
        self._expect("]")
        finish_sequence(node)
        return node

    def _object(self, path: str) -> Mapping:
        node = Mapping(*self._place())
        self._at += 1
        if self.peek() != "}":
            self._entry(node, path)
            while self.peek() == ",":
                self._at += 1
                self._entry(node, path)
        self._expect("}")
        finish_mapping(node, self.problems, path)
        return node

    def _entry(self, node: Mapping, path: str) -> None:
        if self.peek() != '"':
            raise self.wrong("expected a key in double quotes")
        key = self._string()
        self._expect(":")
        node.entries.append((key, self.value(f"{path}.{key.text}" if path else key.text)))

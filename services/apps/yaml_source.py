"""YAML 1.2 as a tree of places: one document, no tabs, no tags, no duplicate keys, aliases that stay small.

Works on ruamel's event stream, not on its constructor: no recursion, so that depth, number of nodes and the expansion of
aliases are bounded while the text is being read, and a bomb costs no more than its own bytes.
"""

from __future__ import annotations

from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from piccolod.errors import Problem
from services.apps.source import (
    MAX_DEPTH,
    MAX_EXPANDED_BYTES,
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

_TAB: Final = "\t"


def parse(text: str) -> tuple[Mapping, list[Problem]]:
    """The root of the manifest, and the mistakes of form that did not keep it from being read. Raises Unreadable."""
    check_size(text)
    composer = _Composer()
    try:
        for event in YAML(typ="safe", pure=True).parse(text.removeprefix("\ufeff")):
            composer.feed(event)
    except MarkedYAMLError as error:
        raise _unreadable(error, text) from error
    except YAMLError as error:
        raise Unreadable(f"not YAML: {' '.join(str(error).split())}") from error
    except (ValueError, IndexError, KeyError, AttributeError, AssertionError, OverflowError) as error:
        # ruamel's scanner breaks in these ways on some garbage instead of naming it.
        raise Unreadable(f"not YAML ({type(error).__name__})") from error
    root = composer.root
    if not isinstance(root, Mapping):
        raise Unreadable("a manifest is a mapping that begins with `name:`", *_place_of(root))
    return root, composer.problems


def _unreadable(error: Any, text: str) -> Unreadable:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    lines = text.splitlines()
    if mark and mark.line < len(lines) and _TAB in lines[mark.line][: mark.column + 1] and "'\\t'" in str(error.problem):
        return Unreadable("a tab: indent and separate with spaces", line, column)
    reason = " ".join(part for part in (error.context, error.problem) if part)
    return Unreadable(f"not YAML: {reason}", line, column)


def _place_of(node: Node | None) -> tuple[int, int]:
    return (node.line, node.column) if node is not None else (1, 1)


class _Composer:
    """Builds the tree event by event, with a stack of its own."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self._open: list[tuple[Sequence | Mapping, str | None]] = []
        self._keys: list[Scalar | None] = []
        self._anchors: dict[str, Node] = {}
        self._nodes = 0
        self._expanded = 0
        self._documents = 0

    def feed(self, event: Event) -> None:
        if isinstance(event, DocumentStartEvent):
            self._begin_document(event)
        elif isinstance(event, ScalarEvent):
            self._add(self._scalar(event), event.anchor)
        elif isinstance(event, AliasEvent):
            self._alias(event)
        elif isinstance(event, SequenceStartEvent | MappingStartEvent):
            self._begin(event)
        elif isinstance(event, SequenceEndEvent | MappingEndEvent):
            self._end()

    def _begin_document(self, event: Any) -> None:
        self._documents += 1
        line, column = _mark(event)
        if self._documents > 1:
            raise Unreadable("a second document: a manifest is one", line, column)
        if event.version is not None and tuple(event.version) != (1, 2):
            raise Unreadable("write YAML 1.2: remove the %YAML line", line, column)

    def _scalar(self, event: Any) -> Scalar:
        line, column = _mark(event)
        return Scalar(line, column, size=len(event.value.encode()) + 1, text=event.value, plain=event.style is None)

    def _begin(self, event: Any) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise Unreadable(f"more than {MAX_DEPTH} levels deep", *_mark(event))
        self._count(event)
        kind = Mapping if isinstance(event, MappingStartEvent) else Sequence
        self._open.append((kind(*_mark(event)), event.anchor))
        self._keys.append(None)

    def _end(self) -> None:
        node, anchor = self._open.pop()
        self._keys.pop()
        if isinstance(node, Mapping):
            finish_mapping(node, self.problems, self._path())
        else:
            finish_sequence(node)
        self._place(node, anchor)

    def _alias(self, event: Any) -> None:
        line, column = _mark(event)
        target = self._anchors.get(event.anchor)
        if target is None:
            recursive = any(anchor == event.anchor for _, anchor in self._open)
            raise Unreadable(f"*{event.anchor} " + ("contains itself" if recursive else "names no anchor"), line, column)
        self._expanded += target.size
        if self._expanded > MAX_EXPANDED_BYTES:
            raise Unreadable(f"aliases expand beyond {MAX_EXPANDED_BYTES // 1024} KiB", line, column)
        if len(self._open) + target.height > MAX_DEPTH:
            raise Unreadable(f"more than {MAX_DEPTH} levels deep", line, column)
        self._count(event)
        self._place(target, None)

    def _add(self, node: Scalar, anchor: str | None) -> None:
        self._count(node)
        self._place(node, anchor)

    def _count(self, where: Any) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise Unreadable(f"more than {MAX_NODES} values", *_mark(where))

    def _place(self, node: Node, anchor: str | None) -> None:
        """Puts a whole node where it belongs."""
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._open:
            self.root = node
            return
        parent, _ = self._open[-1]
        if isinstance(parent, Sequence):
            parent.items.append(node)
            return
        assert isinstance(parent, Mapping)
        key = self._keys[-1]
        if key is not None:
            parent.entries.append((key, node))
            self._keys[-1] = None
        elif isinstance(node, Scalar):
            self._keys[-1] = node
        else:
            raise Unreadable("a key must be text", node.line, node.column)

    def _path(self) -> str:
        path = ""
        for (node, _), key in zip(self._open, self._keys, strict=True):
            if isinstance(node, Sequence):
                path += f"[{len(node.items)}]"
            elif key is not None:
                path += f".{key.text}" if path else key.text
        return path


def _mark(where: Any) -> tuple[int, int]:
    """Line and column from 1. A tag is a wish to be read as another type: nothing here grants it."""
    if isinstance(where, Node):
        return where.line, where.column
    mark = where.start_mark
    tag = getattr(where, "tag", None)
    if tag is not None and not isinstance(where, AliasEvent):
        raise Unreadable(f"the tag {tag}: tags are not used here", mark.line + 1, mark.column + 1)
    return mark.line + 1, mark.column + 1

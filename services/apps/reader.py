"""From a tree of places to a manifest: types and limits come from the structs, every mistake is kept with its place.

A value that breaks a rule is replaced by its default and reading goes on, so that one call names all mistakes.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import types
import typing
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Final, Literal

import msgspec

from piccolod.errors import Problem
from services.apps.checks import CHECKS
from services.apps.later import LATER_KEYS, LATER_VALUES, OTHER_KEYS, not_supported
from services.apps.manifest import Manifest
from services.apps.source import Mapping, Node, Scalar, Sequence

_INTEGER: Final = re.compile(r"[-+]?\d{1,18}")
# YAML 1.2 core schema: numbers, infinities
_FLOAT: Final = re.compile(r"[-+]?(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?")
_INFINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_TRUE: Final = ("true", "True", "TRUE")
_FALSE: Final = ("false", "False", "FALSE")
_ODD_TRUTH: Final = ("yes", "no", "on", "off", "y", "n")
MISSING: Final = object()


@dataclass(slots=True)
class Reading:
    """What was read: the places of everything, and what was wrong."""

    problems: list[Problem] = field(default_factory=list)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def blame(self, path: str, message: str, node: Node | None = None) -> None:
        line, column = (node.line, node.column) if node is not None else self.place(path)
        self.problems.append(Problem(path, message, line, column))

    def place(self, path: str) -> tuple[int, int]:
        """Where `path` is, or where the nearest thing around it is."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.places.get("", (1, 1))

    def broken(self, prefix: str) -> bool:
        """Whether something at or below `prefix` is already reported."""
        return any(p.path == prefix or p.path.startswith((f"{prefix}.", f"{prefix}[")) for p in self.problems)


def read(root: Mapping, reading: Reading) -> Manifest:
    """The manifest as far as it could be read; it counts only when `reading` has no problems."""
    extensions = [(key, node) for key, node in root.entries if key.text.startswith("x-")]
    root = Mapping(root.line, root.column, entries=[entry for entry in root.entries if entry not in extensions])
    manifest = _struct(Manifest, root, "", reading)
    values = {key.text: plain(node) for key, node in extensions}
    read_manifest: Manifest = msgspec.structs.replace(manifest, extensions=values)
    return read_manifest


def plain(node: Node) -> Any:
    """The value of a free field, by the core schema of YAML 1.2."""
    if isinstance(node, Mapping):
        return {key.text: plain(value) for key, value in node.entries}
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    assert isinstance(node, Scalar)
    if not node.plain:
        return node.text
    if node.is_nothing:
        return None
    if node.text in _TRUE or node.text in _FALSE:
        return node.text in _TRUE
    if _INTEGER.fullmatch(node.text):
        return int(node.text)
    return float(node.text) if _FLOAT.fullmatch(node.text) and math.isfinite(float(node.text)) else node.text


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, tuple[Any, bool, Any]]:
    """name -> (type with its limits, required, default)"""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {}
    for info in msgspec.structs.fields(kind):
        if info.name == "extensions":
            continue
        default = info.default_factory() if info.default_factory is not msgspec.NODEFAULT else info.default
        found[info.name] = (hints[info.name], info.required, default)
    return found


def _struct(kind: type[msgspec.Struct], node: Node, path: str, reading: Reading) -> Any:
    reading.places[path] = (node.line, node.column)
    fields = _fields(kind)
    values = {name: default for name, (_, required, default) in fields.items() if not required}
    if not isinstance(node, Mapping):
        reading.blame(path, f"must be a mapping, as {{{', '.join(list(fields)[:3])}}}", node)
        return _filled(kind, values, fields)
    for key, value in node.entries:
        where = f"{path}.{key.text}" if path else key.text
        if key.text not in fields:
            _unknown(key, value, where, list(fields), reading)
        elif not (isinstance(value, Scalar) and value.is_nothing and not fields[key.text][1]):  # `title:` says nothing
            result = _value(fields[key.text][0], value, where, reading)
            if result is not MISSING:
                values[key.text] = result
            elif fields[key.text][1]:
                values[key.text] = None
    for name, (_, required, _) in fields.items():
        if required and name not in values:
            where = f"{path}.{name}" if path else name
            reading.blame(where, "is required", node)
    return _filled(kind, values, fields)


def _filled(kind: type[msgspec.Struct], values: dict[str, Any], fields: dict[str, tuple[Any, bool, Any]]) -> Any:
    """The struct, with an empty value for what is required and could not be read: its problem is already reported."""
    empty = {name: _empty(hint) for name, (hint, _, _) in fields.items() if values.get(name) is None and fields[name][1]}
    return kind(**{**values, **empty})


def _empty(hint: Any) -> Any:
    base = _bare(hint)[0]
    return () if typing.get_origin(base) is tuple else base()


def _unknown(key: Scalar, value: Node, where: str, known: list[str], reading: Reading) -> None:
    generic = _generic(where)
    if (what := LATER_KEYS.get(generic)) is not None:
        if not _is_empty(value):
            reading.blame(where, not_supported(what), key)
        return
    if (hint := OTHER_KEYS.get(generic)) is not None:
        reading.blame(where, f"unknown key: {hint}", key)
        return
    near = difflib.get_close_matches(key.text, known, n=1)
    reading.blame(where, "unknown key" + (f", did you mean `{near[0]}`?" if near else f"; known: {', '.join(known)}"), key)


def _is_empty(node: Node) -> bool:
    if isinstance(node, Scalar):
        return node.is_nothing
    return not (node.items if isinstance(node, Sequence) else node.entries if isinstance(node, Mapping) else ())


def _generic(path: str) -> str:
    path = re.sub(r"\[\d+\]", "", path)
    return re.sub(r"^(storage\.(?:persistent|temporary))\.[^.]+", r"\1.*", path)


def _bare(hint: Any) -> tuple[Any, tuple[msgspec.Meta, ...]]:
    """The type without its limits, and the limits."""
    if typing.get_origin(hint) is Annotated:
        inner, *limits = typing.get_args(hint)
        bare, more = _bare(inner)
        return bare, (*more, *limits)
    return hint, ()


def _value(hint: Any, node: Node, path: str, reading: Reading) -> Any:
    """The value, or MISSING with a problem."""
    reading.places[path] = (node.line, node.column)
    base, limits = _bare(hint)
    origin = typing.get_origin(base)
    if base is Any:
        return plain(node)
    if origin in (typing.Union, types.UnionType):
        return _union(typing.get_args(base), node, path, reading)
    if origin is tuple:
        return _tuple(typing.get_args(base)[0], limits, node, path, reading)
    if origin is dict:
        key_hint, value_hint = typing.get_args(base)
        return _dict(key_hint, value_hint, node, path, reading)
    if isinstance(base, type) and issubclass(base, msgspec.Struct):
        return _struct(base, node, path, reading)
    if not isinstance(node, Scalar):
        reading.blame(path, f"must be {_called(base)}", node)
        return MISSING
    if origin is Literal or issubclass(base, Enum):
        return _choice(base, node, path, reading)
    return _scalar(base, limits, node, path, reading)


def _union(options: tuple[Any, ...], node: Node, path: str, reading: Reading) -> Any:
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return _value(options[0], node, path, reading)
    # The only real choice in a manifest: a number, or a word.
    number, word = options
    if isinstance(node, Scalar) and node.text in typing.get_args(word):
        return node.text
    if isinstance(node, Scalar) and node.plain and _INTEGER.fullmatch(node.text):
        return _value(number, node, path, reading)
    reading.blame(path, f"must be {_called(number)} or `{typing.get_args(word)[0]}`", node)
    return MISSING


def _called(base: Any) -> str:
    base = _bare(base)[0]
    if typing.get_origin(base) is Literal or (isinstance(base, type) and issubclass(base, Enum)):
        return "one of " + ", ".join(f"`{choice}`" for choice in _choices(base))
    names: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "`true` or `false`"}
    return names.get(base, "a value")


def _choices(base: Any) -> list[str]:
    return list(typing.get_args(base)) if typing.get_origin(base) is Literal else [str(item.value) for item in base]


def _choice(base: Any, node: Scalar, path: str, reading: Reading) -> Any:
    choices = _choices(base)
    if node.text in choices:
        return base(node.text) if isinstance(base, type) else node.text
    if (what := LATER_VALUES.get((_generic(path), node.text))) is not None:
        reading.blame(path, not_supported(what), node)
    elif path.endswith(".replicate") and _generic(path) == "storage.persistent.*.replicate":
        reading.blame(path, _replicate(node.text), node)
    elif len(choices) == 1:
        reading.blame(path, f"must be `{choices[0]}`, not {node.text!r}", node)
    else:
        near = difflib.get_close_matches(node.text.lower(), choices, n=1)
        reading.blame(path, f"{node.text!r} must be {_called(base)}" + (f"; did you mean `{near[0]}`?" if near else ""), node)
    return MISSING


def _replicate(text: str) -> str:
    try:
        CHECKS["duration"](text)
    except ValueError:
        return f"{text!r} must be `off` or an interval as 5s"
    return not_supported("replication of volumes; write `off`, or leave it out")


def _tuple(item: Any, limits: tuple[msgspec.Meta, ...], node: Node, path: str, reading: Reading) -> Any:
    if not isinstance(node, Sequence):
        reading.blame(path, "must be a list", node)
        return MISSING
    for limit in limits:
        if limit.min_length is not None and len(node.items) < limit.min_length:
            reading.blame(path, "must not be empty", node)
        if limit.max_length is not None and len(node.items) > limit.max_length:
            reading.blame(path, f"must have at most {limit.max_length} items", node)
            return MISSING
    values = [_value(item, child, f"{path}[{index}]", reading) for index, child in enumerate(node.items)]
    return tuple(value for value in values if value is not MISSING)


def _dict(key_hint: Any, value_hint: Any, node: Node, path: str, reading: Reading) -> Any:
    if not isinstance(node, Mapping):
        reading.blame(path, "must be a mapping", node)
        return MISSING
    found = {}
    for key, child in node.entries:
        where = f"{path}.{key.text}"
        before = len(reading.problems)
        _value(key_hint, key, where, reading)
        value = _value(value_hint, child, where, reading)
        if len(reading.problems) == before and value is not MISSING:
            found[key.text] = value
    return found


def _scalar(base: Any, limits: tuple[msgspec.Meta, ...], node: Scalar, path: str, reading: Reading) -> Any:
    try:
        if base is str:
            return _checked_text(node.text, limits)
        if base is bool:
            return _truth(node)
        return _number(base, limits, node)
    except ValueError as error:
        reading.blame(path, str(error), node)
        return MISSING


def _truth(node: Scalar) -> bool:
    if node.plain and node.text in _TRUE + _FALSE:
        return node.text in _TRUE
    odd = " (YAML 1.2 reads this as text)" if node.plain and node.text.lower() in _ODD_TRUTH else ""
    raise ValueError(f"{node.text!r} must be `true` or `false`{odd}")


def _number(base: Any, limits: tuple[msgspec.Meta, ...], node: Scalar) -> int | float:
    shape = _INTEGER if base is int else _FLOAT
    if node.plain and base is float and _INFINITE.fullmatch(node.text):
        raise ValueError(f"{node.text} must be finite")
    if not node.plain or not shape.fullmatch(node.text):
        raise ValueError(f"{node.text!r} must be {_called(base)}" + ("" if node.plain else ", without quotes"))
    value: int | float = base(node.text)
    for limit in limits:
        low, high = limit.ge, limit.le
        if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
            raise ValueError(f"{node.text} must be {low} to {high}")
    return value


def _checked_text(text: str, limits: tuple[msgspec.Meta, ...]) -> str:
    for limit in limits:
        extra = limit.extra or {}
        if limit.max_length is not None and len(text) > limit.max_length:
            raise ValueError(f"has {len(text)} characters, the limit is {limit.max_length}")
        if limit.min_length is not None and len(text) < limit.min_length:
            raise ValueError("must not be empty")
        if (check := extra.get("check")) is not None:
            CHECKS[check](text)
        elif limit.pattern is not None and not re.fullmatch(limit.pattern.removeprefix("^").removesuffix("$"), text):
            raise ValueError(f"{text!r} {extra['must']}")
    return text

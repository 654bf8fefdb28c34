"""The manifest as a JSON Schema, for editors."""

from __future__ import annotations

from typing import Any

import msgspec

from services.apps.later import LATER_KEYS, not_supported
from services.apps.manifest import Manifest

_NOTHING = {"maxItems": 0, "maxProperties": 0, "type": ["array", "object", "null"]}


def schema() -> dict[str, Any]:
    """Draft 2020-12. Checks that look at several fields are `apps validate`'s alone."""
    (root,), definitions = msgspec.json.schema_components([Manifest], ref_template="#/$defs/{name}")
    assert root == {"$ref": "#/$defs/Manifest"}
    top = definitions.pop("Manifest")
    del top["properties"]["extensions"]
    for struct in (top, *definitions.values()):
        for name, value in struct.get("properties", {}).items():
            _widen(struct, name, value)
    _add_later(top, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "piccolo/v1",
        **{key: value for key, value in top.items() if key != "title"},
        "patternProperties": {"^x-": {}},
        "oneOf": [{"required": ["image"]}, {"required": ["build"]}],
        "$defs": definitions,
    }


def _widen(struct: dict[str, Any], name: str, value: dict[str, Any]) -> None:
    """Text fields take what YAML reads as a number or a truth value: `TZ: 1` arrives as the text `1`."""
    inner = value.get("additionalProperties")
    if isinstance(inner, dict) and inner.get("type") == "string":
        inner["type"] = ["string", "number", "boolean", "null"]


def _add_later(top: dict[str, Any], definitions: dict[str, Any]) -> None:
    for path, what in LATER_KEYS.items():
        struct, key = _struct_of(top, definitions, path)
        if struct is not None:
            struct["properties"].setdefault(key, {"description": not_supported(what), **_NOTHING})


def _struct_of(top: dict[str, Any], definitions: dict[str, Any], path: str) -> tuple[dict[str, Any] | None, str]:
    *parents, key = path.split(".")
    struct = top
    for parent in parents:
        reference = _reference(struct["properties"].get(parent, {}))
        if reference is None:
            return None, key
        struct = definitions[reference]
    return struct, key


def _reference(value: dict[str, Any]) -> str | None:
    if "$ref" in value:
        return str(value["$ref"]).rpartition("/")[2]
    for option in (*value.get("anyOf", ()), value.get("items", {})):
        if "$ref" in option:
            return str(option["$ref"]).rpartition("/")[2]
    return None

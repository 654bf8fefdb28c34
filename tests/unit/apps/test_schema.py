"""The schema for editors says the same as the reader."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from services.apps.manifest import Manifest
from services.apps.schema import schema
from tests.node import ROOT
from tests.unit.apps.test_manifest import FULL, GOLDEN, SMALL

# Paths of GOLDEN that one field alone decides, so that an editor can tell as well.
ONE_FIELD = (
    "name", "imag", "ports", "title", "pull", "command", "environment", "listeners[0].flow", "cluster.prefer", "backup",
    "storage.persistent.d.host", "permissions.devices", "resources.x", "resources.limits.cpu",
)  # fmt: skip


def objections(text: str) -> list[str]:
    """What an editor would underline."""
    document: Any = YAML(typ="safe", pure=True).load(text)
    return [error.message for error in jsonschema.Draft202012Validator(schema()).iter_errors(document)]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize(
    "text", [SMALL, FULL, *((ROOT / f"deploy/demo/{name}.yaml").read_text() for name in ("app", "counter"))]
)
def test_what_the_reader_takes_the_schema_takes(text: str) -> None:
    assert objections(text) == []


@pytest.mark.parametrize("path", ONE_FIELD)
def test_a_mistake_in_one_field_is_one_for_the_schema_too(path: str) -> None:
    text = [row[0] for row in GOLDEN if row[1] == path][-1]
    assert objections(text)


def test_every_field_is_in_the_schema_and_nothing_else_is_allowed() -> None:
    document = schema()
    json.dumps(document)
    assert set(document["properties"]) >= set(Manifest.__struct_fields__) - {"extensions"}
    assert document["additionalProperties"] is False
    assert "^x-" in document["patternProperties"]
    assert document["required"] == ["name", "listeners"]
    assert set(document["$defs"]["Listener"]["properties"]) >= {
        "name",
        "guest_port",
        "flow",
        "protocol",
        "public_port",
        "client_ip",
        "hold",
    }


def test_what_comes_later_may_only_be_empty() -> None:
    document = schema()
    assert document["properties"]["backup"]["maxProperties"] == 0
    assert "not supported yet" in document["$defs"]["Cluster"]["properties"]["require"]["description"]


def test_every_reference_leads_somewhere() -> None:
    document = schema()
    text = json.dumps(document)
    for part in text.split('"$ref": "#/$defs/')[1:]:
        assert part.partition('"')[0] in document["$defs"]

"""The schema for editors says the same as the reader."""

from __future__ import annotations

import json

from services.apps.manifest import Manifest
from services.apps.schema import schema


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
    assert "not supported yet" in document["$defs"]["Cluster"]["properties"]["prefer"]["description"]


def test_every_reference_leads_somewhere() -> None:
    document = schema()
    text = json.dumps(document)
    for part in text.split('"$ref": "#/$defs/')[1:]:
        assert part.partition('"')[0] in document["$defs"]

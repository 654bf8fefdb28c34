"""Every command speaks to routes, parameters and fields that the API has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click
import pytest

from piccolod.cli.main import cli
from tests.unit.cli.api_double import ApiDouble, Sent
from tests.unit.cli.conftest import APP, Ctl

OPEN = {"initialized": True, "locked": False, "reason": ""}
MODULE = {"name": "apps", "pid": 1, "instance": "a", "state": "ready"}
CHANGED = {"app": APP, "rev": 2, "warnings": []}

# The arguments of each command that asks the API, and what is piped in.
ASKING: dict[str, tuple[list[str], str]] = {
    "status": ([], ""),
    "ps": ([], ""),
    "logs": (["hello", "-n", "5", "--since", "1h"], ""),
    "events": (["-f", "--type", "Audit", "--key", "x"], ""),
    "why": (["hello"], ""),
    "health": (["hello"], ""),
    "doctor": ([], ""),
    "setup": (["--password-stdin", "--code", "1234"], "pw\n"),
    "unlock": (["--password-stdin"], "pw\n"),
    "lock": ([], ""),
    "keys password": (["--password-stdin"], "old\nnew\n"),
    "keys recovery new": (["--password-stdin"], "pw\n"),
    "keys recovery use": (["--password-stdin"], "words\nnew\n"),
    "apps list": ([], ""),
    "apps show": (["hello"], ""),
    "apps validate": (["-", "--allow-privileged"], "name: hello"),
    "apps plan": (["-", "--allow-privileged"], "name: hello"),
    "apps apply": (["-", "--allow-privileged"], "name: hello"),
    "apps install": (["-", "--allow-privileged"], "name: hello"),
    "apps uninstall": (["hello", "-y", "--purge", "--no-wait"], ""),
    "apps start": (["hello"], ""),
    "apps stop": (["hello", "--no-wait"], ""),
    "apps restart": (["hello"], ""),
    "apps move": (["hello", "--to", "n2", "--no-wait"], ""),
    "apps enable": (["hello"], ""),
    "apps disable": (["hello"], ""),
    "apps update": (["hello", "--image", "x:2", "--without-snapshot"], ""),
    "apps revert": (["hello", "--without-snapshot"], ""),
    "apps logs": (["hello"], ""),
    "apps schema": ([], ""),
    "leaders list": ([], ""),
    "leaders show": (["kernel"], ""),
    "leaders switchover": (["hello", "--to", "n2"], ""),
    "leaders release": (["hello", "-y"], ""),
    "secrets list": ([], ""),
    "secrets set": (["db", "--file", "-"], "value"),
    "secrets remove": (["db", "-y"], ""),
    "settings get": ([], ""),
    "settings set": (["title=Home"], ""),
    "tokens list": ([], ""),
    "tokens create": (["ci", "--expires", "1d"], ""),
    "tokens revoke": (["1", "-y"], ""),
    "cluster list": ([], ""),
    "cluster init": (["--profile", "fast", "--no-wait"], ""),
    "cluster join": (["10.0.0.1", "--token", "t", "--witness", "--discard-local", "-y", "--no-wait"], ""),
    "cluster leave": (["-y"], ""),
    "cluster recover": (["--force", "--no-wait"], ""),
    "cluster pause": ([], ""),
    "cluster resume": ([], ""),
    "cluster history": (["hello", "-n", "5"], ""),
    "cluster tokens list": ([], ""),
    "cluster tokens create": (["--witness", "--expires", "10m"], ""),
    "cluster tokens revoke": (["1", "-y"], ""),
    "nodes list": ([], ""),
    "nodes show": (["n1"], ""),
    "nodes drain": (["n1", "--no-wait"], ""),
    "nodes undrain": (["n1"], ""),
    "nodes remove": (["n1", "-y"], ""),
    "images prune": (["--unused"], ""),
    "images push-peers": (["localhost/x:1"], ""),
    "volumes list": ([], ""),
    "volumes show": (["hello.data"], ""),
    "routes list": ([], ""),
    "routes test": (["hello"], ""),
    "store revision": ([], ""),
    "store log": (["--after", "1"], ""),
    "store check": ([], ""),
    "store repair": (["-y"], ""),
    "modules list": ([], ""),
    "modules show": (["apps"], ""),
    "modules restart": (["apps", "--no-wait"], ""),
    "modules logs": (["apps"], ""),
    "images list": ([], ""),
    "images load": (["-"], "tar"),
    "images import": (["-", "x:1"], "tar"),
    "images build": (["deploy/demo", "x:1"], ""),
    "api": (["GET", "/metrics"], ""),
}
IMAGE_ID = "ab" * 32
IMAGE = {"id": f"sha256:{IMAGE_ID}", "names": ["localhost/x:1"], "size_bytes": 1, "created_ms": 0, "used_by": []}
HERE = {"completion", "version", "config check"}


def leaves(group: click.Group, path: str = "") -> Iterator[str]:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None, f"{path}{name} is in the help and not in the code"
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path}{name} ")
        else:
            yield f"{path}{name}"


def test_every_command_is_looked_at() -> None:
    assert set(leaves(cli)) == set(ASKING) | HERE


@pytest.mark.parametrize("command", sorted(leaves(cli)))
def test_every_command_explains_itself(ctl: Ctl, command: str) -> None:
    done = ctl(*command.split(), "--help")
    assert done.code == 0
    assert len(done.out.splitlines()) > 5


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    from services.api.app import build
    from services.api.routes.docs import document

    return document(build())


def replies(double: ApiDouble) -> None:
    """What lets each command go on to its next request."""
    revision = {"ok": True, "file": "f", "entries": 1, "first_rev": 1, "good_rev": 1, "head_rev": 1}
    double.on("POST", "/apps/validate", {"name": "hello", "warnings": []})
    double.on("POST", "/apps/hello/plan", {"name": "hello", "action": "none", "changes": []})
    for method, path in (("POST", "/apps"), ("PUT", "/apps/hello")):
        double.on(method, path, CHANGED)
    for action in ("start", "stop", "restart", "enable", "disable", "update", "revert"):
        double.on("POST", f"/apps/hello/{action}", CHANGED)
    double.on("GET", "/apps/hello", APP)
    double.on("GET", "/apps/hello/logs", {"lines": [], "cursor": ""})
    double.on("GET", "/health/detail", {"ready": True, "level": "OK", "reason": "", "components": {}})
    double.on("GET", "/events/history", [])
    double.on("GET", "/images", [IMAGE])
    double.on("POST", f"/images/{IMAGE_ID}/push", [])
    double.on("GET", "/settings", {"title": "", "session_hours": 12, "generation": 0})
    double.on("GET", "/modules", [MODULE])
    for path in ("check", "repair"):
        double.on("POST", f"/store/{path}", revision)
    for path in ("setup", "unlock", "lock", "password", "reset"):
        double.on("POST", f"/crypto/{path}", OPEN)


@pytest.mark.parametrize("command", sorted(ASKING))
def test_a_command_asks_for_what_the_api_has(ctl: Ctl, double: ApiDouble, openapi: dict[str, Any], command: str) -> None:
    replies(double)
    arguments, stdin = ASKING[command]
    ctl(*command.split(), *arguments, stdin=stdin)
    assert double.sent
    for sent in double.sent:
        check(openapi, sent)


def check(openapi: dict[str, Any], sent: Sent) -> None:
    operation = operation_of(openapi, sent)
    parameters = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"}
    assert set(sent.query) <= parameters, f"{sent.method} {sent.path} has no parameter {set(sent.query) - parameters}"
    if not sent.body:
        return
    content = operation["requestBody"]["content"]
    kind = sent.headers["content-type"]
    assert kind in content
    if kind == "application/json":
        fields = fields_of(openapi, content[kind]["schema"])
        assert set(sent.document) <= fields, f"{sent.method} {sent.path} has no field {set(sent.document) - fields}"


def operation_of(openapi: dict[str, Any], sent: Sent) -> dict[str, Any]:
    """A path without a name in it goes first, as in the router."""
    for template in sorted(openapi["paths"], key=lambda path: "{" in path):
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, sent.path) and sent.method.lower() in openapi["paths"][template]:
            operation: dict[str, Any] = openapi["paths"][template][sent.method.lower()]
            return operation
    raise AssertionError(f"the API has no {sent.method} {sent.path}")


def fields_of(openapi: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    if "$ref" in schema:
        return fields_of(openapi, openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    found = set(schema.get("properties", ()))
    for part in [*schema.get("oneOf", ()), *schema.get("anyOf", ())]:
        found |= fields_of(openapi, part)
    return found


def test_a_route_that_is_not_there_is_found(openapi: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="has no GET"):
        check(openapi, Sent("GET", "/api/v1/nodez", {}, {}, b""))
    with pytest.raises(AssertionError, match="no parameter"):
        check(openapi, Sent("GET", "/api/v1/apps", {"x": "1"}, {}, b""))
    body = b'{"passwort": "x"}'
    with pytest.raises(AssertionError, match="no field"):
        check(openapi, Sent("POST", "/api/v1/crypto/unlock", {}, {"content-type": "application/json"}, body))

"""`piccoloctl settings`: choices that are sealed in the store, the same for all nodes."""

from __future__ import annotations

import json
from typing import Any

import click

from piccolod.cli.options import Group
from piccolod.cli.session import Printed, Session
from piccolod.cli.sheet import sheet
from piccolod.errors import NotFound

settings = Group("settings", help="Choices that are sealed in the store.")


@settings.command("get", view=True)
@click.argument("key", required=False)
@click.pass_obj
def get(session: Session, key: str | None) -> int:
    """All of them with their values in force, or one."""

    def table(found: dict[str, Any], _wide: bool, width: int) -> str:
        return sheet(found, width)

    def look() -> Printed:
        found = session.client().get("/settings")
        if key is None:
            return Printed(found, table, lambda document: list(document))
        if key not in found:
            raise NotFound(f"there is no setting {key!r}", hint=f"known: {', '.join(found) or 'none'}")
        return Printed(found[key], lambda value, *_: _plain(value), lambda value: [_plain(value)])

    return session.show(look)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@settings.command("set")
@click.argument("pairs", metavar="KEY=VALUE...", nargs=-1, required=True)
@click.pass_obj
def set_(session: Session, pairs: tuple[str, ...]) -> int:
    """Change some; the others stay. VALUE is JSON where it reads as such (true, 5, ["a"]), and text otherwise."""
    client, chosen = session.client(), dict(map(_pair, pairs))
    # The API replaces all of them; `generation` is its own.
    before = {key: value for key, value in client.get("/settings").items() if key != "generation"}
    found = client.send("PUT", "/settings", {**before, **chosen})
    session.write(Printed(found, lambda document, _wide, width: sheet(document, width), lambda _: list(chosen)))
    return 0


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"{text!r} is not KEY=VALUE.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value

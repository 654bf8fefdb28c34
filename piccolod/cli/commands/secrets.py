"""`piccoloctl secrets`: values for apps. They go in and never come out."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Final

import click

from piccolod.cli.client import path_of
from piccolod.cli.complete import secret_names
from piccolod.cli.options import Group
from piccolod.cli.session import Printed, Session
from piccolod.cli.table import Column, table
from piccolod.cli.times import moment
from piccolod.errors import Invalid
from piccolod.units import format_size

secrets = Group("secrets", help="Values for apps that never come back out.")

# Above the API's own limit of 128 KiB, so that its words refuse what is too large.
_MAX_BYTES: Final = 2**18

_name = click.argument("name", shell_complete=secret_names)


@secrets.command("list", view=True)
@click.pass_obj
def list_(session: Session) -> int:
    """The names. Values are never shown."""
    columns = (
        Column("SECRET", lambda item: item.get("name")),
        Column("SIZE", lambda item: format_size(int(item.get("size_bytes") or 0))),
        Column("CHANGED", lambda item: moment(int(item.get("updated_ms") or 0))),
    )

    return session.show(
        lambda: Printed(
            session.client().get("/secrets"),
            table(columns, "No secrets yet: `piccoloctl secrets set NAME` makes one."),
            lambda found: [str(item["name"]) for item in found],
        )
    )


@secrets.command("set")
@_name
@click.option("--file", metavar="FILE", help="Take the whole content of FILE as it is; `-` is standard input.")
@click.pass_obj
def set_(session: Session, name: str, file: str | None) -> int:
    """Give a secret its value: asked for, or from a file. Never as an argument, which every user could read."""
    body = _content(file) if file else {"value": _typed(name)}
    session.client().send("PUT", path_of("secrets", name), body)
    session.say(f"{name} is set; apps that use it get it at their next start")
    return 0


def _typed(name: str) -> str:
    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask for the value on: use --file FILE, or --file - for standard input.")
    value: str = click.prompt(f"Value of {name}", hide_input=True, err=True)
    return value


def _read(file: str) -> bytes:
    with Path(file).open("rb") as stream:
        return stream.read(_MAX_BYTES + 1)


def _content(file: str) -> dict[str, str]:
    """As text, or in base64 where it is none."""
    try:
        content = sys.stdin.buffer.read(_MAX_BYTES + 1) if file == "-" else _read(file)
    except OSError as error:
        raise Invalid(f"cannot read {file}: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise Invalid(f"{file} is too large for a secret: more than {format_size(_MAX_BYTES)}")
    try:
        return {"value": content.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(content).decode()}


@secrets.command("remove")
@_name
@click.pass_obj
def remove(session: Session, name: str) -> int:
    """Delete a secret."""
    session.confirm(f"Delete the secret {name}?")
    session.client().send("DELETE", path_of("secrets", name))
    session.say(f"{name} is deleted")
    return 0

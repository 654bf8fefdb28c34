"""`piccoloctl tokens`: access for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click

from piccolod.cli.client import path_of
from piccolod.cli.complete import token_ids
from piccolod.cli.options import Duration, Group
from piccolod.cli.session import Printed, Session
from piccolod.cli.table import Column, table
from piccolod.cli.times import moment

tokens = Group("tokens", help="Access for programs.")

_PATH: Final = "/auth/tokens"
_COLUMNS: Final = (
    Column("ID", lambda item: item.get("id")),
    Column("NAME", lambda item: item.get("name")),
    Column("SCOPE", lambda item: (item.get("scopes") or [""])[-1]),
    Column("CREATED", lambda item: moment(int(item.get("created_ms") or 0))),
    Column("EXPIRES", lambda item: moment(int(item.get("expires_ms") or 0)) if item.get("expires_ms") else "never"),
    Column("CREATED BY", lambda item: item.get("created_by"), wide=True),
)


@tokens.command("list", view=True)
@click.pass_obj
def list_(session: Session) -> int:
    """All tokens. Their secrets are not kept and cannot be shown."""
    return show(session, _PATH, _COLUMNS, "No tokens: `piccoloctl tokens create NAME`.")


@tokens.command()
@click.argument("name")
@click.option(
    "--scope", type=click.Choice(["read", "write", "admin"]), default="read", show_default=True, help="What it may do."
)
@click.option("--expires", type=Duration(), metavar="TIME", help="End it after, as 30d. Without it, it never ends.")
@click.pass_obj
def create(session: Session, name: str, scope: str, expires: float | None) -> int:
    """Make a token and print it, this one time."""
    body = {"name": name, "scope": scope, "expires_in_s": round(expires or 0)}
    return make(session, _PATH, body, "keep it safe, it is not shown again. Use it as PICCOLO_TOKEN with PICCOLO_URL.")


@tokens.command()
@click.argument("id", shell_complete=token_ids)
@click.pass_obj
def revoke(session: Session, id: str) -> int:
    """Make a token void, at once."""
    return end(session, _PATH, id, "token")


# --- what tokens of either kind have in common


def show(session: Session, path: str, columns: Sequence[Column], empty: str) -> int:
    return session.show(
        lambda: Printed(session.client().get(path), table(columns, empty), lambda found: [str(item["id"]) for item in found])
    )


def make(session: Session, path: str, body: dict[str, Any], hint: str) -> int:
    """Sent once: what it makes is shown this one time."""
    found = session.client().send("POST", path, body, repeat=False)
    session.write(Printed(found, lambda document, *_: str(document["token"]), lambda document: [str(document["id"])]))
    session.say(f"hint: {hint}")
    return 0


def end(session: Session, path: str, id: str, what: str) -> int:
    session.confirm(f"Revoke the {what} {id}?")
    session.client().send("DELETE", path + path_of(id))
    session.say(f"the {what} {id} is void")
    return 0

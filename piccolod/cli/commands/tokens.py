"""`piccoloctl tokens`: access for programs."""

from __future__ import annotations

from typing import Any, Final

import click

from piccolod.cli.client import path_of
from piccolod.cli.complete import token_ids
from piccolod.cli.options import Duration, Group
from piccolod.cli.session import Printed, Session
from piccolod.cli.table import Column, render
from piccolod.cli.times import moment

tokens = Group("tokens", help="Access for programs.")

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

    def table(found: list[dict[str, Any]], wide: bool, width: int) -> str:
        return render(found, _COLUMNS, wide=wide, width=width) if found else "No tokens: `piccoloctl tokens create NAME`."

    return session.show(
        lambda: Printed(session.client().get("/auth/tokens"), table, lambda found: [str(item["id"]) for item in found])
    )


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
    found = session.client().send("POST", "/auth/tokens", body, repeat=False)
    session.write(Printed(found, lambda document, *_: str(document["token"]), lambda document: [str(document["id"])]))
    session.say("hint: keep it safe, it is not shown again. Use it as PICCOLO_TOKEN with PICCOLO_URL.")
    return 0


@tokens.command()
@click.argument("id", shell_complete=token_ids)
@click.pass_obj
def revoke(session: Session, id: str) -> int:
    """Make a token void, at once."""
    session.confirm(f"Revoke the token {id}?")
    session.client().send("DELETE", path_of("auth", "tokens", id))
    session.say(f"the token {id} is void")
    return 0

"""`piccoloctl nodes`: the machines of the cluster."""

from __future__ import annotations

from typing import Any, Final

import click

from piccolod.cli.client import path_of
from piccolod.cli.complete import node_names
from piccolod.cli.options import Group
from piccolod.cli.session import Printed, Session
from piccolod.cli.sheet import sheet
from piccolod.cli.table import Column, table

nodes = Group("nodes", help="The nodes of the cluster.")

# etcd refuses a change of its members within 5 s of the last one, and the API waits for that.
_REMOVE_S: Final = 60.0

_name = click.argument("name", metavar="NODE", shell_complete=node_names)


def _deadline(item: dict[str, Any]) -> str:
    left = item.get("deadline_s")
    return "never" if left is None else f"{float(left):.1f} s"


COLUMNS: Final = (
    Column("NODE", lambda item: item.get("name") or item.get("node")),
    Column("STATE", lambda item: item.get("state"), state=True),
    Column("ROLE", lambda item: item.get("role")),
    Column("KERNEL", lambda item: "leader" if item.get("leads_kernel") else "follower"),
    Column("VOTE", lambda item: bool(item.get("voter"))),
    Column("EPOCH", lambda item: item.get("epoch") or ""),
    Column("REV", lambda item: item.get("rev")),
    Column("LAG", lambda item: "" if item.get("role") == "witness" else item.get("lag")),
    Column("DEADLINE", _deadline),
    Column("RPC", lambda item: item.get("rpc"), wide=True),
    Column("API", lambda item: item.get("api_url"), wide=True),
    Column("ADDRESS", lambda item: item.get("address")),
)


@nodes.command("list", view=True)
@click.pass_obj
def list_(session: Session) -> int:
    """All of them, as etcd knows them."""
    return session.show(
        lambda: Printed(session.client().get("/nodes"), table(COLUMNS), lambda found: [str(item["name"]) for item in found])
    )


@nodes.command(view=True)
@_name
@click.pass_obj
def show(session: Session, name: str) -> int:
    """One of them in full."""

    def look() -> Printed:
        found = session.client().get(path_of("nodes", name))
        return Printed(found, lambda document, _wide, width: sheet(document, width), lambda document: [str(document["name"])])

    return session.show(look)


@nodes.command()
@_name
@click.pass_obj
def remove(session: Session, name: str) -> int:
    """Take a node out for good: its vote, its certificate and its name. Its own data stays on its disk."""
    session.confirm(f"Take {name} out of the cluster?")
    session.timeout_s = session.timeout_s or _REMOVE_S
    session.client().send("POST", path_of("nodes", name, "remove"))
    session.say(f"{name} is no member any more: `piccoloctl cluster leave` on it makes it a node alone")
    return 0

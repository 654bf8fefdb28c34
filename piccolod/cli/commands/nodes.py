"""`piccoloctl nodes`: the machines of the cluster."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from piccolod import clock
from piccolod.cli.client import path_of
from piccolod.cli.complete import node_names
from piccolod.cli.options import Group
from piccolod.cli.session import Printed, Session
from piccolod.cli.sheet import sheet
from piccolod.cli.table import Column, printable, table
from piccolod.cli.wait import answer
from piccolod.errors import Conflict, DeadlineExceeded, StoreUnavailable

nodes = Group("nodes", help="The nodes of the cluster.")

# etcd refuses a change of its members within 5 s of the last one, and the API waits for that.
_REMOVE_S: Final = 60.0
_DRAIN_S: Final = 600.0
_LOOK_S: Final = 0.2

_name = click.argument("name", metavar="NODE", shell_complete=node_names)


def _deadline(item: dict[str, Any]) -> str:
    left = item.get("deadline_s")
    return "never" if left is None else f"{float(left):.1f} s"


def _state(item: dict[str, Any]) -> str:
    """`drained` once nothing is on its way any more."""
    drain = item.get("drain")
    if drain is None or item.get("state") != "alive":
        return str(item.get("state"))
    return "draining" if any(not each["reason"] for each in drain["left"]) else "drained"


COLUMNS: Final = (
    Column("NODE", lambda item: item.get("name") or item.get("node")),
    Column("STATE", _state, state=True),
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


@nodes.command(waits=True)
@_name
@click.pass_obj
def drain(session: Session, name: str) -> int:
    """Hand over what a node leads, and let it take nothing over: before it is switched off. Holds over reboots."""
    session.client().send("POST", path_of("nodes", name, "drain"))
    if not session.wait:
        session.say(f"{name} hands over: `piccoloctl nodes show {name}` tells how far it is")
        return 0
    left = _until_handed_over(session, name)
    for each in left:
        session.say(f"{printable(each['resource'])} stays: {printable(each['reason'])}")
    if left:
        session.say(f"error: {name} still leads {len(left)}, which end with it")
        return 1
    session.say(f"{name} leads nothing and can be switched off; `piccoloctl nodes undrain {name}` lets it take over again")
    return 0


def _until_handed_over(session: Session, name: str) -> list[dict[str, Any]]:
    """What stays, once nothing is on its way any more."""
    client, end_at = session.client(), clock.now() + (session.timeout_s or _DRAIN_S)
    moving: list[dict[str, Any]] = []
    began = False
    while True:
        found = answer(client, path_of("nodes", name), StoreUnavailable) or {}
        if (drain := found.get("drain")) is not None:
            began, before = True, len(moving)
            moving = [each for each in drain["left"] if not each["reason"]]
            if not moving:
                return list(drain["left"])
            if len(moving) != before:
                session.say(f"{name}: {len(moving)} to go, next {printable(moving[0]['resource'])}")
        elif found and began:
            raise Conflict(
                f"the drain of {name} was ended before it was through",
                hint=f"`piccoloctl leaders list` shows what {name} leads",
            )
        if clock.now() > end_at:
            raise DeadlineExceeded(
                f"{name} still hands over {len(moving)} after {session.timeout_s or _DRAIN_S:g} s",
                hint=f"it goes on without us: `piccoloctl nodes show {name}`; wait longer with --timeout",
            )
        time.sleep(_LOOK_S)


@nodes.command()
@_name
@click.pass_obj
def undrain(session: Session, name: str) -> int:
    """Let a node take over again. What it gave away does not come back by itself."""
    session.client().send("POST", path_of("nodes", name, "undrain"))
    session.say(f"{name} takes over again")
    return 0


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

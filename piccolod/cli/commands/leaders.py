"""`piccoloctl leaders`, `why`: who leads what, since when, and why."""

from __future__ import annotations

from typing import Any, Final

import click

from piccolod.cli.client import path_of
from piccolod.cli.complete import resource_names
from piccolod.cli.options import Command, Group
from piccolod.cli.session import Printed, Session
from piccolod.cli.sheet import sheet
from piccolod.cli.table import Column, printable, render, table
from piccolod.cli.times import ago, moment
from piccolod.units import format_duration

leaders = Group("leaders", help="Who leads what, and moving it.")

_resource = click.argument("resource", metavar="RES", shell_complete=resource_names)


def resource_of(text: str) -> str:
    """`kernel`, `app:hello`, or just `hello`."""
    return text if text == "kernel" or ":" in text else f"app:{text}"


def _since(item: dict[str, Any]) -> int:
    return int(item.get("since_ms") or item.get("since") or 0)


def _left(item: dict[str, Any]) -> str:
    left = item.get("deadline_s")
    return "never ends" if left is None else format_duration(float(left))


_COLUMNS: Final = (
    Column("RESOURCE", lambda item: item.get("resource")),
    Column("ROLE", lambda item: item.get("role"), state=True),
    Column("NODE", lambda item: item.get("node")),
    Column("ADDRESS", lambda item: item.get("address"), wide=True),
    Column("EPOCH", lambda item: item.get("epoch")),
    Column("TOKEN", lambda item: item.get("token"), wide=True),
    Column("SINCE", lambda item: ago(_since(item))),
    Column("DEADLINE", _left),
    Column("REASON", lambda item: item.get("reason")),
)

_CANDIDATES: Final = (
    Column("NODE", lambda item: item.get("node")),
    Column("ELIGIBLE", lambda item: "yes" if item.get("eligible") else "no"),
    Column("REASON", lambda item: item.get("reason")),
)


@leaders.command("list", view=True)
@click.pass_obj
def list_(session: Session) -> int:
    """Everything that is led, as this node sees it."""
    return session.show(
        lambda: Printed(
            session.client().get("/leadership"), table(_COLUMNS), lambda found: [str(item["resource"]) for item in found]
        )
    )


@leaders.command(view=True)
@_resource
@click.pass_obj
def show(session: Session, resource: str) -> int:
    """One resource: `kernel`, or an app."""

    def look() -> Printed:
        document = session.client().get(path_of("leadership", resource_of(resource)))
        return Printed(document, lambda found, _wide, width: sheet(found, width), lambda found: [str(found["resource"])])

    return session.show(look)


@leaders.command()
@_resource
@click.option("--to", default="", metavar="NODE", help="The node that should lead; without it, the best candidate.")
@click.pass_obj
def switchover(session: Session, resource: str, to: str) -> int:
    """Hand a resource to another node."""
    name = resource_of(resource)
    session.client().send("POST", path_of("leadership", name, "switchover"), {"to": to})
    session.say(f"{name} is handed over")
    return 0


@leaders.command()
@_resource
@click.pass_obj
def release(session: Session, resource: str) -> int:
    """Give a resource up, for another node to take."""
    name = resource_of(resource)
    session.confirm(f"Give up {name}?")
    session.client().send("POST", path_of("leadership", name, "release"))
    session.say(f"{name} is given up")
    return 0


@click.command(cls=Command)
@_resource
@click.pass_obj
def why(session: Session, resource: str) -> int:
    """Why an app or the kernel is led where it is, and what changed before."""
    found = session.client().get(path_of("leadership", resource_of(resource), "why"))
    session.write(Printed(found, _why, lambda document: [str(document["leadership"]["resource"])]))
    return 0


def _why(found: dict[str, Any], _wide: bool, width: int) -> str:
    lines = [printable(str(found.get("explanation")))]
    candidates = (found.get("leadership") or {}).get("candidates") or ()
    if len(candidates) > 1:
        lines += ["", *render(list(candidates), _CANDIDATES, wide=False, width=width).splitlines(), ""]
    lines += [f"  {_step(change)}" for change in found.get("history") or ()]
    return "\n".join(lines)


def _step(change: dict[str, Any]) -> str:
    way = " -> ".join(str(change[key]) for key in ("from_node", "to_node") if change.get(key))
    phases = ", ".join(f"{name} {float(took):.0f} ms" for name, took in (change.get("phases") or {}).items())
    told = f"{moment(int(change.get('at_ms') or 0))}  epoch {change.get('epoch')}  {way}: {change.get('reason')}"
    served = change.get("resource") == "kernel" or "routed" in (change.get("phases") or ())
    if served and len(change["phases"]) > 1:
        phases += f": {sum(map(float, change['phases'].values())):.0f} ms in all"
    return printable(told + (f" ({phases})" if phases else ""))

"""`piccoloctl modules`: piccolod's own processes."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from piccolod import clock
from piccolod.cli.client import path_of
from piccolod.cli.complete import module_names
from piccolod.cli.options import Group
from piccolod.cli.refusal import Refusal
from piccolod.cli.session import Form, Printed, Session
from piccolod.cli.sheet import sheet
from piccolod.cli.table import Column, printable, table
from piccolod.cli.times import moment
from piccolod.errors import DeadlineExceeded, NotFound, Unavailable
from piccolod.units import format_duration, format_size

modules = Group("modules", help="piccolod's own processes.")

_LOOK_S: Final = 0.05

_name = click.argument("name", shell_complete=module_names)

_COLUMNS: Final = (
    Column("MODULE", lambda item: item.get("name")),
    Column("STATE", lambda item: item.get("state"), state=True),
    Column("PID", lambda item: item.get("pid") or ""),
    Column("RESTARTS", lambda item: item.get("restarts")),
    Column("UP", lambda item: format_duration(float(item.get("uptime_s") or 0))),
    Column("MEMORY", lambda item: format_size(int(item.get("rss_bytes") or 0))),
    Column("REV", lambda item: item.get("applied_rev"), wide=True),
    Column("INSTANCE", lambda item: item.get("instance"), wide=True),
    Column("REASON", lambda item: item.get("reason")),
)


@modules.command("list", view=True)
@click.pass_obj
def list_(session: Session) -> int:
    """All of them, in the order of their start."""
    return session.show(
        lambda: Printed(session.client().get("/modules"), table(_COLUMNS), lambda found: [str(item["name"]) for item in found])
    )


@modules.command(view=True)
@_name
@click.pass_obj
def show(session: Session, name: str) -> int:
    """One of them in full, and how its processes ended."""

    def look() -> Printed:
        module = _one(session, name)
        deaths = session.client().get(path_of("modules", name, "deaths"))
        return Printed(module, lambda found, _wide, width: _told(found, deaths, width), lambda found: [str(found["name"])])

    return session.show(look)


def _one(session: Session, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = session.client().get("/modules")
    for module in found:
        if module.get("name") == name:
            return module
    raise NotFound(f"no module is called {name!r}", hint="`piccoloctl modules list` shows all")


def _told(module: dict[str, Any], deaths: list[dict[str, Any]], width: int) -> str:
    lines = [sheet(module, width)]
    for death in deaths:
        lines.append(
            f"ended {moment(int(death.get('at_ms') or 0))} as pid {death.get('pid')}: {printable(str(death.get('reason')))}"
        )
        lines += [f"  {printable(str(line))}" for line in (death.get("log") or ())[-5:]]
    return "\n".join(lines)


@modules.command(waits=True)
@_name
@click.pass_obj
def restart(session: Session, name: str) -> int:
    """Restart one. Apps and their connections do not notice."""
    client = session.client()
    before = _one(session, name)
    client.request("POST", path_of("modules", name, "restart"), repeat=False)
    if not session.wait:
        session.say(f"{name} is being restarted")
        return 0
    found = _until_new(session, name, str(before.get("instance")))
    session.write(Printed(found, lambda document, *_: f"{name} is ready again as pid {document.get('pid')}", lambda _: [name]))
    return 0


def _until_new(session: Session, name: str, old_instance: str) -> dict[str, Any]:
    end_at, state = clock.now() + session.patience_s, "not seen"
    while True:
        try:
            found: dict[str, Any] = _one(session, name)
        except Unavailable:
            found = {}  # it is the api that restarts
        except Refusal as refusal:
            if not isinstance(refusal.error, Unavailable):
                raise
            found = {}
        state = str(found.get("state") or state)
        if state == "ready" and found.get("instance") not in ("", old_instance, None):
            return found
        if clock.now() + _LOOK_S > end_at:
            raise DeadlineExceeded(
                f"{name} is still {state} after {session.patience_s:g} s", hint=f"see `piccoloctl modules logs {name}`"
            )
        time.sleep(_LOOK_S)


@modules.command()
@_name
@click.option("-n", "--tail", default=100, show_default=True, type=click.IntRange(1, 10000), help="How many lines.")
@click.pass_obj
def logs(session: Session, name: str, tail: int) -> int:
    """What a module wrote last."""
    found = session.client().get(path_of("modules", name, "logs", tail=tail))
    if found["lines"] or session.form in (Form.JSON, Form.YAML):
        session.write(Printed(found, lambda document, *_: "\n".join(document["lines"]), lambda document: document["lines"]))
    else:
        session.say(f"{name} has written nothing")
    return 0

"""`piccoloctl routes`: public ports and where they lead."""

from __future__ import annotations

from typing import Any, Final

import click

from piccolod.cli.client import path_of
from piccolod.cli.complete import listener_names
from piccolod.cli.options import Group
from piccolod.cli.session import Printed, Session
from piccolod.cli.table import Column, table
from piccolod.errors import Invalid, NotFound
from piccolod.units import format_size

routes = Group("routes", help="Public ports and where they lead.")

_COLUMNS: Final = (
    Column("APP", lambda item: item.get("app")),
    Column("LISTENER", lambda item: item.get("listener")),
    Column("PORT", lambda item: item.get("public_port")),
    Column("MODE", lambda item: item.get("mode"), state=True),
    Column("TARGET", lambda item: item.get("target")),
    Column("EPOCH", lambda item: item.get("epoch"), wide=True),
    Column("OPEN", lambda item: item.get("connections")),
    Column("TOTAL", lambda item: item.get("total_connections"), wide=True),
    Column("REFUSED", lambda item: item.get("refused"), wide=True),
    Column("IN", lambda item: format_size(int(item.get("bytes_in") or 0)), wide=True),
    Column("OUT", lambda item: format_size(int(item.get("bytes_out") or 0)), wide=True),
    Column("REASON", lambda item: item.get("reason")),
)


@routes.command("list", view=True)
@click.pass_obj
def list_(session: Session) -> int:
    """Each listener of each app."""

    def names(found: list[dict[str, Any]]) -> list[str]:
        return [f"{item['app']}.{item['listener']}" for item in found]

    return session.show(
        lambda: Printed(
            session.client().get("/routes"), table(_COLUMNS, "No routes: no app with a listener is installed."), names
        )
    )


@routes.command("test")
@click.argument("name", metavar="APP[.LISTENER]", shell_complete=listener_names)
@click.pass_obj
def test(session: Session, name: str) -> int:
    """Dial an app as its clients would. Exit code 1 when it does not answer."""
    app, _, listener = name.partition(".")
    found = session.client().send("POST", "/routes/test", {"app": app, "listener": listener or _only(session, app)})
    session.write(Printed(found, lambda document, *_: _told(name, document), lambda _: [name]))
    return 0 if found.get("ok") else 1


def _only(session: Session, app: str) -> str:
    """The app's listener, when there is no choice."""
    listeners = [str(item["name"]) for item in session.client().get(path_of("apps", app))["listeners"]]
    if not listeners:
        raise NotFound(f"{app} has no listener")
    if len(listeners) > 1:
        raise Invalid(f"{app} has several listeners: {', '.join(listeners)}", hint=f"name one, as {app}.{listeners[0]}")
    return listeners[0]


def _told(name: str, found: dict[str, Any]) -> str:
    if found.get("ok"):
        return f"{name} answers: connected in {float(found.get('connect_ms') or 0):.1f} ms"
    return f"{name} does not answer: {found.get('reason')}"

"""`piccoloctl health`: for people and for monitoring, with the exit codes of its plugins."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import click

from piccolod.cli.client import path_of
from piccolod.cli.options import Command
from piccolod.cli.refusal import Refusal, explain
from piccolod.cli.session import Printed, Session
from piccolod.cli.table import Column, render
from piccolod.errors import NotFound, PiccoloError


class Verdict(IntEnum):
    """The exit code."""

    OK = 0
    WARN = 1
    CRIT = 2
    UNKNOWN = 3


_LEVELS = {"OK": Verdict.OK, "WARN": Verdict.WARN, "ERROR": Verdict.CRIT}
_STATES = {
    **dict.fromkeys(("running", "standby"), Verdict.OK),
    **dict.fromkeys(("pending", "pulling", "starting", "stopping", "degraded"), Verdict.WARN),
    "failed": Verdict.CRIT,
}


@click.command(cls=Command, view=True)
@click.argument("resource", metavar="[RES]", required=False)
@click.pass_obj
def health(session: Session, resource: str | None) -> int:
    """The judgement of each component, or of one: a component, or an app. Exit code 0 OK, 1 WARN, 2 CRIT, 3 UNKNOWN."""
    try:
        return session.show(lambda: _of_all(session) if resource is None else _of_one(session, resource))
    except (Refusal, PiccoloError) as failure:
        click.echo("\n".join(explain(failure)), err=True)
        return Verdict.UNKNOWN


def _of_all(session: Session) -> Printed:
    detail = session.client().get("/health/detail")
    return Printed(detail, _table, lambda found: list(found["components"]), _verdict(detail))


def _of_one(session: Session, name: str) -> Printed:
    components = {} if name.startswith("app:") else session.client().get("/health/detail")["components"]
    if name in components:
        said = components[name]
        return Printed(said, lambda *_: _sentence(name, said), lambda _: [name], _verdict(said))
    try:
        app = session.client().get(path_of("apps", name.removeprefix("app:")))
    except Refusal as refusal:
        if isinstance(refusal.error, NotFound):
            raise NotFound(
                f"neither a component nor an app is called {name!r}", hint="`piccoloctl health` lists the components"
            ) from refusal
        raise
    return Printed(app, lambda *_: _app_sentence(app), lambda _: [name], _app_verdict(app))


def _verdict(said: dict[str, Any]) -> Verdict:
    return _LEVELS.get(str(said.get("level")), Verdict.UNKNOWN)


def _app_verdict(app: dict[str, Any]) -> Verdict:
    """Stopped as its admin wants is well; stopped although it should run is not."""
    if app.get("state") == "stopped":
        return Verdict.OK if app.get("desired") == "stopped" or not app.get("enabled") else Verdict.WARN
    return _STATES.get(str(app.get("state")), Verdict.UNKNOWN)


def _sentence(name: str, said: dict[str, Any]) -> str:
    told = ", ".join(str(said[key]) for key in ("role", "reason") if said.get(key))
    return f"{_verdict(said).name} {name}" + (f": {told}" if told else "")


def _app_sentence(app: dict[str, Any]) -> str:
    return f"{_app_verdict(app).name} {app['name']}: {app.get('state')}" + (f": {app['reason']}" if app.get("reason") else "")


def _table(detail: dict[str, Any], wide: bool, width: int) -> str:
    columns = (
        Column("COMPONENT", lambda item: item[0]),
        Column("LEVEL", lambda item: _verdict(item[1]).name, state=True),
        Column("ROLE", lambda item: item[1].get("role")),
        Column("REASON", lambda item: item[1].get("reason")),
    )
    first = f"{_verdict(detail).name}" + ("" if detail.get("ready") else f", not ready: {detail.get('reason')}")
    return f"{first}\n\n{render(sorted(detail['components'].items()), columns, wide=wide, width=width)}"

"""`piccoloctl status`: one screen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from piccolod.cli.app_view import COLUMNS as APP_COLUMNS
from piccolod.cli.options import Command
from piccolod.cli.session import Printed, Session
from piccolod.cli.table import coloured, cut, printable, render

_AT_REST = frozenset({"ready", "disabled", "absent"})


@click.command(cls=Command, view=True)
@click.pass_obj
def status(session: Session) -> int:
    """This node, its modules and its apps on one screen."""

    def look() -> Printed:
        return Printed(session.client().get("/status"), screen, lambda document: [str(document.get("node"))])

    return session.show(look)


def screen(document: dict[str, Any], wide: bool, width: int) -> str:
    facts = {
        "node": f"{document.get('node')} at {document.get('address')}",
        "cluster": _cluster(document.get("cluster")),
        "role": f"{document.get('role')} of the kernel",
        "store": _store(document),
        "health": _health(document),
        "modules": _modules(document.get("modules") or []),
    }
    lines = [
        f"{click.style(name.ljust(8), bold=True)} {cut(text, width - 9) if width else text}" for name, text in facts.items()
    ]
    lines += _unwell(document.get("modules") or [])
    lines += _missing(document)
    apps = document.get("apps") or []
    lines.append("")
    if apps:
        lines.append(render(apps, APP_COLUMNS, wide=wide, width=width))
    elif not document.get("initialized"):
        lines.append("Nothing is set up yet: `piccoloctl setup` sets the first password.")
    elif document.get("locked"):
        lines.append("The store is locked: `piccoloctl unlock` opens it.")
    elif "apps" in (document.get("missing") or {}):
        pass
    else:
        lines.append("No apps yet: `piccoloctl apps install FILE` installs one.")
    return "\n".join(lines)


def _cluster(cluster: object) -> str:
    if not cluster:
        return "none: this node is alone"
    return printable(str(cluster.get("name") or cluster) if isinstance(cluster, dict) else str(cluster))


def _store(document: dict[str, Any]) -> str:
    if not document.get("initialized"):
        return coloured("no password yet", "locked")
    word = "locked" if document.get("locked") else "unlocked"
    return f"{coloured(word)}, rev {document.get('rev')}"


def _health(document: dict[str, Any]) -> str:
    level, reason = str(document.get("health")), printable(str(document.get("reason") or ""))
    if not document.get("ready"):
        return f"{coloured(level)}, not ready: {reason}"
    return coloured(level) + ("" if level == "OK" else ": `piccoloctl health` says why")


def _modules(modules: Iterable[dict[str, Any]]) -> str:
    states = [str(module.get("state")) for module in modules]
    ready = states.count("ready")
    restarts = sum(int(module.get("restarts") or 0) for module in modules)
    return f"{ready} of {len(states)} ready" + (f", {restarts} restarts" if restarts else "")


def _unwell(modules: Iterable[dict[str, Any]]) -> list[str]:
    return [
        f"  {module.get('name')} is {coloured(str(module.get('state')))}"
        + (f": {printable(str(module['reason']))}" if module.get("reason") else "")
        for module in modules
        if module.get("state") not in _AT_REST
    ]


def _missing(document: dict[str, Any]) -> list[str]:
    """What could not be asked. A closed store explains itself."""
    if document.get("locked"):
        return []
    return [f"  {part}: {printable(str(reason))}" for part, reason in (document.get("missing") or {}).items()]

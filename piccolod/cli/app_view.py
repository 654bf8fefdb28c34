"""How an app is written for people: in lists, in sentences, as addresses to open."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from piccolod.cli.table import Column, coloured, printable, render

App = dict[str, Any]


def addresses(app: App) -> list[str]:
    """One for each listener that is bound: a URL where a browser can open it. Elsewhere another program may answer."""
    host = str((app.get("leader") or {}).get("address") or "127.0.0.1")
    host = f"[{host}]" if ":" in host else host
    served = [one for one in app.get("listeners") or [] if one.get("public_port") and one.get("bound") is not False]
    return [_address(host, listener) for listener in served]


def unbound(app: App) -> list[str]:
    """Listeners whose public port no router could bind."""
    found = [listener for listener in app.get("listeners") or [] if listener.get("bound") is False]
    return [f"the listener {listener.get('name')} on port {listener.get('public_port')}" for listener in found]


def _address(host: str, listener: dict[str, Any]) -> str:
    place = f"{host}:{listener['public_port']}"
    if listener.get("protocol") not in ("http", "websocket"):
        return f"{listener.get('flow')}://{place}"
    return f"https://{place}" if listener.get("flow") == "tls" else f"http://{place}"


def _node(app: App) -> str:
    return str((app.get("leader") or {}).get("node") or "")


def _reason(app: App) -> str:
    return "; ".join([str(app.get("reason") or ""), *map(str, app.get("warnings") or ())]).strip("; ")


COLUMNS: Final = (
    Column("APP", lambda app: app.get("name")),
    Column("STATE", lambda app: app.get("state"), state=True),
    Column("POLICY", lambda app: app.get("policy"), wide=True),
    Column("NODE", _node),
    Column("EPOCH", lambda app: (app.get("leader") or {}).get("epoch"), wide=True),
    Column("ENABLED", lambda app: app.get("enabled"), wide=True),
    Column("GEN", lambda app: app.get("generation"), wide=True),
    Column("RESTARTS", lambda app: app.get("restarts"), wide=True),
    Column("IMAGE", lambda app: app.get("image"), wide=True),
    Column("ADDRESS", lambda app: " ".join(addresses(app))),
    Column("REASON", _reason),
)


def as_table(apps: list[App], wide: bool, width: int) -> str:
    if not apps:
        return "No apps yet: `piccoloctl apps install FILE` installs one."
    return render(sorted(apps, key=lambda app: str(app.get("name"))), COLUMNS, wide=wide, width=width)


def names(apps: Iterable[App]) -> list[str]:
    return [str(app.get("name")) for app in apps]


def sentence(app: App) -> str:
    """`hello is running at http://127.0.0.1:35000`."""
    state, reason = str(app.get("state")), printable(str(app.get("reason") or ""))
    where = " and ".join(addresses(app)) if state in ("running", "degraded") else ""
    return f"{app.get('name')} is {coloured(state)}" + (f" at {where}" if where else "") + (f": {reason}" if reason else "")

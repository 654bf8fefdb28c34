"""`piccoloctl volumes`: the apps' data."""

from __future__ import annotations

from typing import Any, Final

import click

from piccolod.cli.client import path_of
from piccolod.cli.complete import volume_names
from piccolod.cli.options import Group
from piccolod.cli.session import Printed, Session
from piccolod.cli.sheet import sheet
from piccolod.cli.table import Column, table
from piccolod.units import format_size

volumes = Group("volumes", help="The apps' data.")


def _size(item: dict[str, Any], key: str, none: str) -> str:
    size_bytes = int(item.get(key) or 0)
    return format_size(size_bytes) if size_bytes else none


_COLUMNS: Final = (
    Column("APP", lambda item: item.get("app")),
    Column("VOLUME", lambda item: item.get("name")),
    Column("ATTACHED", lambda item: item.get("attached"), state=True),
    Column("USED", lambda item: _size(item, "used_bytes", "0 B")),
    Column("LIMIT", lambda item: _size(item, "size_limit_bytes", "none")),
    Column("PATH", lambda item: item.get("path"), wide=True),
    Column("QUOTA", lambda item: item.get("quota")),
)


@volumes.command("list", view=True)
@click.pass_obj
def list_(session: Session) -> int:
    """All volumes, those of apps that are gone as well."""

    def names(found: list[dict[str, Any]]) -> list[str]:
        return [f"{item['app']}.{item['name']}" for item in found]

    return session.show(
        lambda: Printed(
            session.client().get("/volumes"), table(_COLUMNS, "No volumes: no app has `storage.persistent`."), names
        )
    )


@volumes.command(view=True)
@click.argument("volume", metavar="APP.VOLUME", shell_complete=volume_names)
@click.pass_obj
def show(session: Session, volume: str) -> int:
    """One volume: where it is attached, how full it is, how its limit is kept."""

    def look() -> Printed:
        document = session.client().get(path_of("volumes", volume))
        return Printed(
            document, lambda found, _wide, width: sheet(found, width), lambda found: [f"{found['app']}.{found['name']}"]
        )

    return session.show(look)

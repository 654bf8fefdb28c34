"""`piccoloctl config`: the configuration file of this machine. Needs no running piccolod."""

from __future__ import annotations

from pathlib import Path

import click

from piccolod.cli.options import Group
from piccolod.cli.session import Printed, Session

config = Group("config", help="The configuration file of this machine.")


@config.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@click.pass_obj
def check(session: Session, file: str | None) -> int:
    """Check FILE, or the one that piccolod reads by default. Exit code 8 and every mistake when it is wrong."""
    from piccolod.config import DEFAULT_FILE, load

    loaded = load(Path(file) if file else None)
    where = file or (str(DEFAULT_FILE) if DEFAULT_FILE.exists() else f"there is no {DEFAULT_FILE}; the defaults")
    document = {"file": file or str(DEFAULT_FILE), "node": loaded.node.name, "ok": True}
    session.write(Printed(document, lambda *_: f"{where}: good, for node {loaded.node.name}", lambda _: [loaded.node.name]))
    return 0

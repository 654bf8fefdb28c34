"""`piccoloctl version`."""

from __future__ import annotations

import click

from piccolod.cli.options import Command
from piccolod.cli.session import Printed, Session


@click.command(cls=Command)
@click.pass_obj
def version(session: Session) -> int:
    """The version of this program."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        number = installed("piccolod")
    except PackageNotFoundError:
        number = "not installed"
    session.write(Printed({"version": number}, lambda *_: f"piccoloctl {number}", lambda _: [number]))
    return 0

"""`piccoloctl setup | unlock | lock`."""

from __future__ import annotations

from typing import Any

import click

from piccolod.cli import passwords
from piccolod.cli.options import Command
from piccolod.cli.session import Printed, Session
from piccolod.cli.table import coloured


def write_status(session: Session, status: dict[str, Any]) -> None:
    session.write(Printed(status, lambda document, *_: sentence(document), lambda _: ()))


def sentence(status: dict[str, Any]) -> str:
    if not status.get("initialized"):
        return "the store has no password yet"
    word = "locked" if status.get("locked") else "unlocked"
    reason = str(status.get("reason") or "")
    return f"the store is {coloured(word)}" + (f": {reason}" if reason and "is locked" not in reason else "")


@click.command(cls=Command)
@passwords.options()
@click.option("--code", default="", help="The code that piccolod printed at its start: needed from other machines.")
@click.pass_obj
def setup(session: Session, password_stdin: bool, password_file: str | None, code: str) -> int:
    """Set the first password. It cannot be looked up later, by nobody."""
    source = passwords.Source(password_stdin, password_file)
    password = source.get("New password", twice=True)
    body = {"password": password, **({"code": code} if code else {})}
    status = session.client().send("POST", "/crypto/setup", body, repeat=False)
    write_status(session, status)
    session.say("hint: `piccoloctl keys recovery new` gives words that open the store if the password is lost")
    return 0


@click.command(cls=Command)
@passwords.options()
@click.pass_obj
def unlock(session: Session, password_stdin: bool, password_file: str | None) -> int:
    """Open the store with the password: apps may start and change."""
    password = passwords.Source(password_stdin, password_file).get("Password")
    write_status(session, session.client().send("POST", "/crypto/unlock", {"password": password}, repeat=False))
    return 0


@click.command(cls=Command)
@click.pass_obj
def lock(session: Session) -> int:
    """Close the store: its keys leave memory, and nothing can be changed until it is unlocked."""
    status = session.client().send("POST", "/crypto/lock", repeat=False)
    write_status(session, status)
    left = status.get("still_running") or ()
    if left:
        session.say(f"warning: still running: {', '.join(map(str, left))}")
    if status.get("warning"):
        session.say(f"warning: {status['warning']}")
    return 1 if left or status.get("warning") else 0

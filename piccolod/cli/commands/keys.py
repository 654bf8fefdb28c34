"""`piccoloctl keys`: the password, and the words that open the store without it."""

from __future__ import annotations

import sys

import click

from piccolod.cli import passwords
from piccolod.cli.commands.crypto import write_status
from piccolod.cli.options import Group
from piccolod.cli.session import Printed, Session

keys = Group("keys", help="Change the password; recovery words.")
recovery = Group("recovery", help="24 words that open the store without the password.")
keys.add_command(recovery)


@keys.command("password")
@passwords.options(new=True)
@click.pass_obj
def password(session: Session, password_stdin: bool, password_file: str | None, new_password_file: str | None) -> int:
    """Change the password."""
    source = passwords.Source(password_stdin, password_file)
    _both_or_none(password_file, new_password_file)
    old = source.get("Present password")
    new = source.get("New password", twice=True, file=new_password_file)
    status = session.client().send("POST", "/crypto/password", {"old": old, "new": new}, repeat=False)
    session.say("the password is changed")
    write_status(session, status)
    return 0


def _both_or_none(file: str | None, new_file: str | None) -> None:
    if bool(file) != bool(new_file):
        raise click.UsageError("--password-file and --new-password-file go together.")


@recovery.command("new")
@passwords.options()
@click.pass_obj
def new(session: Session, password_stdin: bool, password_file: str | None) -> int:
    """Make new recovery words. Earlier ones stop to work."""
    secret = passwords.Source(password_stdin, password_file).get("Password")
    found = session.client().send("POST", "/crypto/recovery", {"password": secret}, repeat=False)
    session.write(Printed(found, lambda document, *_: str(document["words"]), lambda document: [str(document["words"])]))
    session.say("hint: write them on paper, in this order. They are not shown again, and earlier ones are void now.")
    return 0


@recovery.command("use")
@click.option("--words-file", metavar="FILE", help="Read the words from the first line of FILE.")
@passwords.options()
@click.pass_obj
def use(session: Session, words_file: str | None, password_stdin: bool, password_file: str | None) -> int:
    """Set a new password with the recovery words. With --password-stdin: words in the first line, password in the second."""
    source = passwords.Source(password_stdin, password_file)
    if password_file and not words_file:
        raise click.UsageError("--password-file needs --words-file.")
    if source.interactive and not words_file and not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask on: use --password-stdin, or --words-file with --password-file.")
    words = source.get("Recovery words", file=words_file)
    secret = source.get("New password", twice=True)
    write_status(session, session.client().send("POST", "/crypto/reset", {"words": words, "new": secret}, repeat=False))
    return 0

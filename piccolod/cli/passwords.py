"""Secrets of people: typed without echo, from standard input, or from a file. Never on the command line, where all can read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from piccolod.errors import Invalid


def options(*, new: bool = False) -> Callable[[Any], Any]:
    """`--password-stdin` and `--password-file`; with `new` also a file for the second password."""

    def decorate(function: Any) -> Any:
        lines = "the first line of standard input, the new one from the second" if new else "the first line of standard input"
        if new:
            function = click.option("--new-password-file", metavar="FILE", help="Read the new password from FILE.")(function)
        function = click.option("--password-file", metavar="FILE", help="Read the password from FILE.")(function)
        return click.option("--password-stdin", is_flag=True, help=f"Read the password from {lines}.")(function)

    return decorate


class Source:
    """Where the passwords of one command come from."""

    def __init__(self, stdin: bool, file: str | None) -> None:
        if stdin and file:
            raise click.UsageError("--password-stdin and --password-file exclude each other.")
        self._stdin = stdin
        self._file = file

    def get(self, prompt: str, *, twice: bool = False, file: str | None = None) -> str:
        """One password. `file` names another file than --password-file for it."""
        name = file or self._file
        if name and not self._stdin:
            return _from_file(name)
        if self._stdin:
            return _line(sys.stdin.readline(), "standard input")
        return ask(prompt, twice=twice)

    @property
    def interactive(self) -> bool:
        return not self._stdin and not self._file


def ask(prompt: str, *, twice: bool = False) -> str:
    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask for a password on: use --password-stdin or --password-file FILE.")
    while True:
        first: str = click.prompt(prompt, hide_input=True, err=True)
        if not twice or first == click.prompt("Repeat it", hide_input=True, err=True):
            return first
        click.echo("They are not the same. Once more.", err=True)


def _from_file(name: str) -> str:
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot read the password file {name}: {getattr(error, 'strerror', None) or error}") from error
    return _line(text, name)


def _line(text: str, where: str) -> str:
    """Without the line's end: `echo` adds one, and nobody's password has one."""
    line = text.split("\n", 1)[0].removesuffix("\r")
    if not line:
        raise Invalid(f"{where} has no password in its first line")
    return line

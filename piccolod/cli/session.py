"""One run of `piccoloctl`: where to, in which form to print, how long to wait, and what may be said besides."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from piccolod.cli.client import Client

DEFAULT_SOCKET: Final = "/run/piccolod/api.sock"
WOULD_CHANGE: Final = 10  # the exit code of what only says what it would do
_WAIT_S: Final = 60.0
_WATCH_S: Final = 1.0


class Form(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class Printed:
    """What a command has to show: the API's object, and how to write it for people and as names."""

    document: Any
    table: Callable[[Any, bool, int], str]  # (document, wide, width of the terminal or 0)
    names: Callable[[Any], Iterable[str]]
    code: int = 0


@dataclass(slots=True)
class Session:
    """Filled by the options, wherever on the line they are: before the command or after it."""

    socket: str = DEFAULT_SOCKET
    url: str = ""
    token: str = ""
    form: Form = Form.TABLE
    watch: bool = False
    quiet: bool = False
    yes: bool = False
    timeout_s: float | None = None
    redirect: bool = True
    wait: bool = True

    def client(self, *, endless: bool = False, here: bool = False) -> Client:
        """`endless`: for what takes as long as it takes (uploads, following), unless --timeout says otherwise.

        `here`: for what is meant for this very node, and for no other that leads.
        """
        from piccolod.cli.client import READ_S, WRITE_S, Client
        from piccolod.cli.target import Target

        given = self.timeout_s
        return Client(
            Target(self.socket, self.url, self.token),
            read_s=given if given is not None or endless else READ_S,
            write_s=given if given is not None or endless else WRITE_S,
            redirect=self.redirect and not here,
        )

    @property
    def patience_s(self) -> float:
        """How long a command waits for its result."""
        return self.timeout_s if self.timeout_s is not None else _WAIT_S

    # --- stderr

    def say(self, text: str) -> None:
        """Progress and hints: on stderr, and not with -q."""
        if not self.quiet:
            click.echo(text, err=True)

    def confirm(self, question: str) -> None:
        """Goes on only after a yes; without a terminal to ask on, only with -y."""
        if self.yes:
            return
        if not sys.stdin.isatty():
            raise click.UsageError(f"{question} There is no terminal to ask on: say yes with -y.")
        if not click.confirm(question, err=True):
            raise click.Abort

    # --- stdout

    def show(self, look: Callable[[], Printed]) -> int:
        """Prints once, or with -w again whenever it changed. Returns the exit code of what was shown last."""
        if self.watch:
            return self._show_again(look)
        printed = look()
        self.write(printed)
        return printed.code

    def write(self, printed: Printed) -> None:
        text = self.text(printed)
        if text or self.form is not Form.NAME:
            click.echo(text)

    def text(self, printed: Printed) -> str:
        match self.form:
            case Form.JSON:
                return json.dumps(printed.document, indent=None if self.watch else 2, ensure_ascii=False)
            case Form.YAML:
                return ("---\n" if self.watch else "") + as_yaml(printed.document)
            case Form.NAME:
                return "\n".join(printed.names(printed.document))
            case _:
                return printed.table(printed.document, self.form is Form.WIDE, terminal_width())

    def _show_again(self, look: Callable[[], Printed]) -> int:
        from piccolod.cli.watch import watch

        return watch(self, look, _WATCH_S)


def as_yaml(document: Any) -> str:
    import io

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue().removesuffix("...\n").rstrip("\n")


def terminal_width() -> int:
    """0 when stdout is no terminal: then nothing is cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def colours_wanted() -> bool | None:
    """https://no-color.org: any non-empty value. None = as the stream is a terminal or not."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None

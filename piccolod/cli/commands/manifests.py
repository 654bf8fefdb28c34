"""`piccoloctl apps install|apply|plan|validate|schema`: what is done with a manifest."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from piccolod.cli.client import path_of
from piccolod.cli.commands.apps import written
from piccolod.cli.options import Command
from piccolod.cli.refusal import Refusal
from piccolod.cli.session import WOULD_CHANGE, Printed, Session
from piccolod.cli.table import printable
from piccolod.errors import Invalid

# The API's own limit is 256 KiB; a little more is read so that the API's words refuse what is too large.
_MAX_BYTES: Final = 2**20


def _manifest_command(*, waits: bool = False) -> Callable[[Any], click.Command]:
    def decorate(function: Any) -> click.Command:
        command: click.Command = click.command(cls=Command, waits=waits)(click.pass_obj(function))
        command.params[:0] = [
            click.Argument(["file"], metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True)),
            click.Option(
                ["--allow-privileged"], is_flag=True, help="I agree that this app can take over the machine (`privileged`)."
            ),
        ]
        return command

    return decorate


def _read(file: str) -> bytes:
    """`-` is standard input."""
    try:
        if file == "-":
            return sys.stdin.buffer.read(_MAX_BYTES)
        with Path(file).open("rb") as stream:
            return stream.read(_MAX_BYTES)
    except OSError as error:
        raise Invalid(f"cannot read {file}: {error.strerror}", hint="name a manifest, or `-` for standard input") from error


@contextmanager
def _about(file: str) -> Iterator[None]:
    """Errors inside name places of `file`."""
    try:
        yield
    except Refusal as refusal:
        refusal.file = "stdin" if file == "-" else file
        raise


def _send(session: Session, method: str, path: str, file: str, text: bytes) -> Any:
    kind = "application/json" if file.endswith(".json") or text.lstrip()[:1] == b"{" else "application/yaml"
    with _about(file):
        return session.client().request(method, path, text, content_type=kind).document()


def _name(session: Session, file: str, text: bytes, consent: bool) -> str:
    """The manifest's name, by the one reader that decides what a manifest is."""
    return str(_send(session, "POST", path_of("apps", "validate", consent=consent), file, text)["name"])


@_manifest_command(waits=True)
def install(session: Session, file: str, allow_privileged: bool) -> int:
    """Install a new app from FILE, and wait until it answers."""
    return written(session, _send(session, "POST", path_of("apps", consent=allow_privileged), file, _read(file)))


@_manifest_command(waits=True)
def apply(session: Session, file: str, allow_privileged: bool) -> int:
    """Install or change an app so that it is as FILE says."""
    text = _read(file)
    name = _name(session, file, text, allow_privileged)
    return written(session, _send(session, "PUT", path_of("apps", name, consent=allow_privileged), file, text))


@_manifest_command()
def plan(session: Session, file: str, allow_privileged: bool) -> int:
    """What `apply` would do. Exit code 0: nothing; 10: it would change something."""
    text = _read(file)
    name = _name(session, file, text, allow_privileged)
    found = _send(session, "POST", path_of("apps", name, "plan", consent=allow_privileged), file, text)
    session.write(Printed(found, _planned, lambda document: [str(document["name"])]))
    return 0 if found.get("action") == "none" else WOULD_CHANGE


def _planned(found: dict[str, Any], _wide: bool, _width: int) -> str:
    name = found.get("name")
    if found.get("action") == "none":
        return f"{name}: nothing to change"
    first = f"{name}: would be installed" if found.get("action") == "install" else f"{name}: would be changed"
    lines = [first + (", and restarted" if found.get("restarts") and found.get("action") != "install" else "")]
    lines += [f"  {printable(str(change))}" for change in found.get("changes") or ()]
    lines += [f"  warning: {printable(str(warning))}" for warning in found.get("warnings") or ()]
    return "\n".join(lines)


@_manifest_command()
def validate(session: Session, file: str, allow_privileged: bool) -> int:
    """Check FILE without changing anything; every mistake with its line and column."""
    found = _send(session, "POST", path_of("apps", "validate", consent=allow_privileged), file, _read(file))
    for warning in found.get("warnings") or ():
        session.say(f"warning: {warning}")
    shown = "standard input" if file == "-" else file
    session.write(
        Printed(found, lambda document, *_: f"{shown} is a good manifest of {document['name']}", lambda d: [str(d["name"])])
    )
    return 0


@click.command(cls=Command)
@click.pass_obj
def schema(session: Session) -> int:
    """The JSON Schema of manifests: for editors that check while you type."""
    from piccolod.cli.session import Form

    document = session.client().get("/app-schema")
    session.form = session.form if session.form is Form.YAML else Form.JSON
    session.write(Printed(document, lambda *_: "", lambda _: ()))
    return 0

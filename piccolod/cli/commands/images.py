"""`piccoloctl images`: container images, without a registry too."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from piccolod.cli.client import path_of
from piccolod.cli.complete import image_names
from piccolod.cli.options import Group
from piccolod.cli.session import Printed, Session
from piccolod.cli.table import Column, table
from piccolod.cli.times import moment
from piccolod.cli.upload import Upload, of_file, of_folder
from piccolod.errors import NotFound
from piccolod.units import format_size

images = Group("images", help="Container images, without a registry too.")

_file_argument = click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True))


_ID_CHARACTERS: Final = 8  # of an id at least, where one is given for a name


def _id(item: dict[str, Any]) -> str:
    return str(item.get("id") or "").removeprefix("sha256:")


_COLUMNS: Final = (
    Column("IMAGE", lambda item: " ".join(item.get("names") or ())),
    Column("ID", lambda item: _id(item)[:12]),
    Column("SIZE", lambda item: format_size(int(item.get("size_bytes") or 0))),
    Column("CREATED", lambda item: moment(int(item.get("created_ms") or 0))),
    Column("USED BY", lambda item: " ".join(item.get("used_by") or ())),
)


def _names(found: list[dict[str, Any]]) -> list[str]:
    return [str((item.get("names") or [item.get("id")])[0]) for item in found]


@images.command("list", view=True)
@click.pass_obj
def list_(session: Session) -> int:
    """The images of this node."""
    shown = table(_COLUMNS, "No images: `piccoloctl images load FILE`.")
    return session.show(lambda: Printed(session.client().get("/images"), shown, _names))


@images.command()
@_file_argument
@click.pass_obj
def load(session: Session, file: str) -> int:
    """Load an archive of `podman save` or `docker save`, or an OCI archive; `-` is standard input."""
    return _send(session, lambda sent: of_file(file, sent), kind="load")


@images.command("import")
@_file_argument
@click.argument("name", shell_complete=image_names)
@click.pass_obj
def import_(session: Session, file: str, name: str) -> int:
    """Make an image NAME of a root file system in a tar; `-` is standard input."""
    return _send(session, lambda sent: of_file(file, sent), kind="import", name=name)


@images.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, exists=True))
@click.argument("name", shell_complete=image_names)
@click.pass_obj
def build(session: Session, folder: str, name: str) -> int:
    """Build an image NAME from the Containerfile in DIR."""
    return _send(session, lambda sent: of_folder(folder, sent), kind="build", name=name)


@images.command("push-peers")
@click.argument("name", shell_complete=image_names)
@click.pass_obj
def push_peers(session: Session, name: str) -> int:
    """Send an image to every other node that lacks it. Those that an app needs are sent by themselves."""
    client = session.client(endless=True)
    image = _named(client.get("/images"), name)
    handed: list[dict[str, Any]] = client.send("POST", path_of("images", _id(image), "push"), repeat=False)
    session.write(Printed(handed, lambda found, *_: _handed(found), lambda found: [str(each["node"]) for each in found]))
    return 1 if any(each["error"] for each in handed) else 0


def _named(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for item in found:
        if not {name, f"localhost/{name}"}.isdisjoint(item.get("names") or ()):
            return item
    for item in found:
        if len(name) >= _ID_CHARACTERS and _id(item).startswith(name.removeprefix("sha256:")):
            return item
    raise NotFound(f"this node has no image {name}", hint="`piccoloctl images list` shows what it has")


def _handed(found: list[dict[str, Any]]) -> str:
    told = [f"{each['node']}: {each['error'] or ('had it' if each['had'] else 'has it now')}" for each in found]
    return "\n".join(told) or "there is no other node"


@images.command()
@click.option("--unused", is_flag=True, help="Images with a name too, when no app needs them.")
@click.pass_obj
def prune(session: Session, unused: bool) -> int:
    """Remove images without a name that no app needs, nor could revert to."""
    path = path_of("images", "prune", unused=unused)
    gone: list[dict[str, Any]] = session.client().send("POST", path)
    session.write(Printed(gone, lambda found, *_: _removed(found), _names))
    return 0


def _removed(found: list[dict[str, Any]]) -> str:
    freed_bytes = sum(int(item.get("size_bytes") or 0) for item in found)
    return f"{len(found)} images removed, {format_size(freed_bytes)} at most freed"


def _send(session: Session, open_upload: Callable[[Callable[[int], None]], Upload], **query: str) -> int:
    """As long as it takes, unless --timeout says otherwise."""
    client, path = session.client(endless=True), path_of("images", **query)
    with _progress(session) as progress:
        upload = open_upload(progress.sent)
        progress.begin(upload.size_bytes)
        answer = client.request("POST", path, upload, content_type="application/x-tar", repeat=False)
    session.write(Printed(answer.document(), lambda found, *_: _added(found), _names))
    return 0


def _added(found: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"{' '.join(item.get('names') or ()) or 'an image without a name'} is here: {_id(item)[:12]}, "
        f"{format_size(int(item.get('size_bytes') or 0))}"
        for item in found
    )


class _Silent:
    def begin(self, size_bytes: int | None) -> None: ...

    def sent(self, size_bytes: int) -> None: ...


@contextmanager
def _progress(session: Session) -> Iterator[_Silent]:
    """A line on stderr that counts, where somebody sees it; gone when all is done."""
    if session.quiet or not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as line:
        task = line.add_task("sending", total=None)

        class Counting(_Silent):
            def begin(self, size_bytes: int | None) -> None:
                line.update(task, total=size_bytes)

            def sent(self, size_bytes: int) -> None:
                line.advance(task, size_bytes)

        yield Counting()

"""`piccoloctl api METHOD PATH`: the HTTP API as it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from piccolod.cli.options import Command
from piccolod.cli.refusal import from_problem
from piccolod.cli.session import Form, Session, as_yaml
from piccolod.errors import Invalid


@click.command(cls=Command)
@click.argument("method", type=click.Choice(["GET", "HEAD", "POST", "PUT", "DELETE"], case_sensitive=False))
@click.argument("path")
@click.option("-d", "--data", metavar="BODY", help="The body; @FILE takes it from FILE, @- from standard input.")
@click.option("--type", "kind", default="application/json", show_default=True, help="The media type of the body.")
@click.pass_obj
def api(session: Session, method: str, path: str, data: str | None, kind: str) -> int:
    """Call METHOD on PATH, as `api GET /apps`. PATH is below /api/v1 unless it starts with /api or /metrics.

    A POST whose answer is lost is not sent again: whether it was carried out is for you to find out.
    """
    where = path if path.startswith("/") else f"/{path}"
    body = None if data is None else _body(data)
    answer = session.client().request(
        method,
        where,
        body,
        content_type=kind if body is not None else "",
        accept=frozenset(range(300, 600)),
        # Which of the API's POSTs keep the idempotency key is not known here, and some must not be done twice.
        repeat=method != "POST",
    )
    _print(session, answer.body)
    if answer.status < 300:
        return 0
    try:
        raise from_problem(answer.status, answer.document())
    except ValueError:
        raise from_problem(answer.status, None) from None


def _body(text: str) -> bytes:
    if not text.startswith("@"):
        return text.encode()
    try:
        return sys.stdin.buffer.read() if text == "@-" else Path(text[1:]).read_bytes()
    except OSError as error:
        raise Invalid(f"cannot read {text[1:]}: {error.strerror}") from error


def _print(session: Session, body: bytes) -> None:
    """Laid out on a terminal, verbatim into a pipe; YAML where asked for."""
    try:
        document = json.loads(body)
    except ValueError:
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()
        return
    if session.form is Form.YAML:
        click.echo(as_yaml(document))
    elif sys.stdout.isatty() or session.form is Form.JSON:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        sys.stdout.buffer.write(body + b"\n")
        sys.stdout.buffer.flush()

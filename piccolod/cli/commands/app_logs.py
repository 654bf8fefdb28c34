"""`piccoloctl logs`, `apps logs`: what an app writes."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any, Final

import click

from piccolod import clock
from piccolod.cli.client import path_of
from piccolod.cli.complete import app_names
from piccolod.cli.options import Command
from piccolod.cli.refusal import Refusal
from piccolod.cli.session import Form, Printed, Session
from piccolod.cli.times import moment, parse_since
from piccolod.errors import Unavailable

_LOOK_S: Final = 0.3
_GIVE_UP_S: Final = 30.0
_MOST: Final = 1000

# Colours are an app's own choice; whatever else steers a terminal is not.
_STEERING: Final = re.compile(r"\x1b\[[\d;]*m|[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")


@click.command(cls=Command)
@click.argument("name", shell_complete=app_names)
@click.option("-f", "--follow", is_flag=True, help="Go on with what it writes from now on.")
@click.option("-n", "--tail", default=200, show_default=True, type=click.IntRange(0, _MOST), help="How many of the last lines.")
@click.option("--since", metavar="TIME", help="Only newer ones: 10m, or 2026-03-01T12:00:00.")
@click.option("-t", "--timestamps", is_flag=True, help="The time before each line.")
@click.pass_obj
def logs(session: Session, name: str, follow: bool, tail: int, since: str | None, timestamps: bool) -> int:
    """What an app writes, to its stdout and its stderr."""
    found = session.client().get(path_of("apps", name, "logs", tail=tail or None, since=_since(since)))
    if session.form is Form.YAML and not follow:
        session.write(Printed(found, lambda *_: "", lambda _: ()))
        return 0
    _write(session, found if tail else {"lines": ()}, timestamps)
    if not found["lines"] and not follow:
        session.say(f"{name} has written nothing" + (" since then" if since else ""))
    if follow:
        _go_on(session, name, str(found["cursor"]), timestamps)
    return 0


def _since(text: str | None) -> int | None:
    try:
        return parse_since(text) if text else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--since") from error


def _go_on(session: Session, name: str, cursor: str, timestamps: bool) -> None:
    """Asks again from the cursor: nothing is lost or said twice, whatever is restarted meanwhile."""
    end_at = clock.FOREVER if session.timeout_s is None else clock.now() + session.timeout_s
    heard_at = clock.now()
    while clock.now() < end_at:
        time.sleep(_LOOK_S)
        try:
            found = session.client().get(path_of("apps", name, "logs", tail=_MOST, cursor=cursor))
        except (Unavailable, Refusal) as failure:
            away = isinstance(failure, Unavailable) or isinstance(failure.error, Unavailable)
            if not away or clock.now() - heard_at > _GIVE_UP_S:
                raise
            continue
        heard_at, cursor = clock.now(), str(found["cursor"])
        _write(session, found, timestamps)


def _write(session: Session, found: dict[str, Any], timestamps: bool) -> None:
    for line in found["lines"]:
        if session.form is Form.JSON:
            click.echo(json.dumps(line, ensure_ascii=False))
            continue
        stamp = f"{moment(int(line['at_ms']))}  " if timestamps else ""
        click.echo(stamp + _safe(str(line["line"])))
    sys.stdout.flush()


def _safe(text: str) -> str:
    if not sys.stdout.isatty():
        return text
    return _STEERING.sub(lambda match: match[0] if match[0].endswith("m") and len(match[0]) > 1 else "", text)

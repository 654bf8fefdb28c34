"""`piccoloctl events`: what happened, and with -f what happens."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import click

from piccolod import clock
from piccolod.cli.client import Client, path_of
from piccolod.cli.options import Command
from piccolod.cli.session import Form, Session, as_yaml
from piccolod.cli.sse import Message, messages
from piccolod.cli.table import printable
from piccolod.cli.times import moment
from piccolod.errors import Unavailable

# A follower outlives restarts of the api, and of piccolod as well.
_GIVE_UP_S: Final = 30.0
_AGAIN_S: Final = 0.5


@click.command(cls=Command)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on.")
@click.option("-n", "--tail", default=50, show_default=True, type=click.IntRange(0, 1000), help="How many of the past.")
@click.option("--type", "kind", default="", metavar="TYPE", help="Only these, as AppStateChanged.")
@click.option("--key", default="", help="Only about this: an app, a module, a resource.")
@click.pass_obj
def events(session: Session, follow: bool, tail: int, kind: str, key: str) -> int:
    """What happened, oldest first."""
    last = 0
    for event in _past(session, tail, kind, key) if tail else ():
        _write(session, event)
        last = max(last, int(event["id"]))
    if follow:
        for event in _stream(session, path_of("events", type=kind, key=key), last):
            _write(session, event)
    return 0


def _past(session: Session, tail: int, kind: str, key: str) -> list[dict[str, Any]]:
    found = session.client().get(path_of("events", "history", limit=tail, type=kind, key=key))
    past: list[dict[str, Any]] = found
    return past


def _stream(session: Session, path: str, last: int) -> Iterator[dict[str, Any]]:
    """For ever. A lost connection is made again, from the last event that was seen."""
    client, lost_at, told = session.client(endless=True), 0.0, False
    while True:
        try:
            for message in _follow(client, path, last):
                lost_at, told = 0.0, False
                event = _event(message)
                if event is not None:
                    last = int(event["id"])
                    yield event
        except Unavailable:
            if lost_at and clock.now() - lost_at > _GIVE_UP_S:
                raise
        lost_at = lost_at or clock.now()
        if not told:
            session.say("the stream was cut; asking again")
            told = True
        time.sleep(_AGAIN_S)


def _follow(client: Client, path: str, last: int) -> Iterator[Message]:
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(last)} if last else {})}
    with client.stream(path, headers) as lines:
        yield from messages(lines)


def _event(message: Message) -> dict[str, Any] | None:
    try:
        event = json.loads(message.data)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "id" in event and "type" in event else None


def _write(session: Session, event: dict[str, Any]) -> None:
    match session.form:
        case Form.JSON:
            click.echo(json.dumps(event, ensure_ascii=False))
        case Form.YAML:
            click.echo("---\n" + as_yaml(event))
        case Form.NAME:
            click.echo(str(event.get("id")))
        case _:
            click.echo(_line(event))
    sys.stdout.flush()


def _line(event: dict[str, Any]) -> str:
    body = event.get("body") or {}
    told = " ".join(f"{name}={_short(value)}" for name, value in body.items() if value not in ("", None, [], event.get("key")))
    about = f" {event['key']}" if event.get("key") else ""
    return printable(f"{moment(int(event.get('at') or 0))}  {click.unstyle(str(event.get('type')))}{about}  {told}".rstrip())


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f'"{text}"' if " " in text else text

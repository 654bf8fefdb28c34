"""-w: the same view again and again, written only when it changed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click

from piccolod import clock
from piccolod.cli.refusal import Refusal, explain
from piccolod.cli.session import Form, Printed, Session
from piccolod.errors import DeadlineExceeded, PiccoloError


def watch(session: Session, look: Callable[[], Printed], every_s: float) -> int:
    """Until Ctrl-C, or --timeout. What fails for a while is said and tried again: a restart ends no watch."""
    end_at = clock.FOREVER if session.timeout_s is None else clock.now() + session.timeout_s
    if sys.stdout.isatty() and session.form in (Form.TABLE, Form.WIDE):
        return _on_terminal(session, look, every_s, end_at)
    last = trouble = ""
    while True:
        try:
            text, trouble = session.text(look()), ""
        except (Refusal, PiccoloError) as error:
            text, told = last, "\n".join(explain(error))
            if told != trouble:
                session.say(told)
            trouble = told
        if text != last:
            click.echo(text)
            sys.stdout.flush()
        last = text
        _pause(every_s, end_at)


def _on_terminal(session: Session, look: Callable[[], Printed], every_s: float, end_at: float) -> int:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(no_color=click.get_current_context().color is False, highlight=False)
    last = ""
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            try:
                last = text = session.text(look())
            except (Refusal, PiccoloError) as error:
                text = "\n".join([last, "", *explain(error)]).lstrip()
            live.update(Text.from_ansi(text, no_wrap=True), refresh=True)
            _pause(every_s, end_at)


def _pause(every_s: float, end_at: float) -> None:
    if clock.now() + every_s > end_at:
        raise DeadlineExceeded("the time to watch is over (--timeout)")
    time.sleep(every_s)

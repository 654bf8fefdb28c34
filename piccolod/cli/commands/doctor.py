"""`piccoloctl doctor`: looks at this machine for what piccolod needs. Reads only; needs no running piccolod."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from piccolod.cli.options import Command
from piccolod.cli.session import Printed, Session
from piccolod.cli.table import coloured, printable


@click.command(cls=Command)
@click.option("--config", "file", metavar="FILE", help="The configuration of piccolod, if it is not the default one.")
@click.pass_obj
def doctor(session: Session, file: str | None) -> int:
    """Check this machine: what piccolod needs, and what it lacks. Exit code 1 when something must be mended."""
    from piccolod.cli.checkup import Grade, examine

    findings = examine(session.client, session.socket, Path(file) if file else None)
    document = [
        {"check": each.check, "grade": each.grade.value, "finding": each.finding, "hint": each.hint} for each in findings
    ]
    bad = any(each.grade is Grade.BAD for each in findings)
    session.write(Printed(document, _lines, lambda found: [str(each["check"]) for each in found if each["grade"] != "ok"]))
    return 1 if bad else 0


_MARKS = {"ok": ("ok", "green"), "note": ("note", "cyan"), "warn": ("warn", "yellow"), "bad": ("BAD", "red")}


def _lines(findings: list[dict[str, Any]], _wide: bool, _width: int) -> str:
    wide = max(len(str(each["check"])) for each in findings)
    lines = []
    for each in findings:
        mark, colour = _MARKS[str(each["grade"])]
        lines.append(
            f"{click.style(mark.ljust(4), fg=colour)}  {str(each['check']).ljust(wide)}  {printable(str(each['finding']))}"
        )
        if each["hint"]:
            lines.append(f"{' ' * (wide + 8)}{click.style('->', fg='cyan')} {printable(str(each['hint']))}")
    mend = sum(each["grade"] == "bad" for each in findings)
    lines.append("")
    lines.append(coloured(f"{mend} to mend", "error") if mend else coloured("nothing to mend", "ok"))
    return "\n".join(lines)

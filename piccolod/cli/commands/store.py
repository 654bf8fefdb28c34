"""`piccoloctl store`: the sealed log under it all."""

from __future__ import annotations

from typing import Any, Final

import click

from piccolod.cli.client import path_of
from piccolod.cli.options import Group
from piccolod.cli.session import Printed, Session
from piccolod.cli.sheet import sheet
from piccolod.cli.table import Column, printable, table
from piccolod.cli.times import moment
from piccolod.units import format_size

store = Group("store", help="The sealed log under it all: revision, entries, check, repair.")

# Every entry is read and verified: 10,000 take half a second, and a disk may be slow.
_VERIFY_S: Final = 300.0

_COLUMNS: Final = (
    Column("REV", lambda item: item.get("rev")),
    Column("TIME", lambda item: moment(int(item.get("wall_ms") or 0))),
    Column("EPOCH", lambda item: item.get("epoch"), wide=True),
    Column("AUTHOR", lambda item: item.get("author")),
    Column("SIZE", lambda item: format_size(int(item.get("size_bytes") or 0))),
    Column("DIGEST", lambda item: str(item.get("digest"))[:12], wide=True),
    Column("CHANGED", lambda item: ", ".join(item.get("changed") or ())),
)


@store.command(view=True)
@click.pass_obj
def revision(session: Session) -> int:
    """The rev of this node, and how much of it is verified."""
    return session.show(
        lambda: Printed(
            session.client().get("/store/revision"),
            lambda found, _wide, width: sheet(found, width),
            lambda found: [str(found["rev"])],
        )
    )


@store.command()
@click.option("-n", "--tail", default=50, show_default=True, type=click.IntRange(1, 1000), help="How many of the last.")
@click.option("--after", type=int, default=None, help="From the entry after this rev on, instead of the last.")
@click.pass_obj
def log(session: Session, tail: int, after: int | None) -> int:
    """The entries, oldest first."""
    found = session.client().get(path_of("store", "log", limit=tail, after=after))

    session.write(
        Printed(found, table(_COLUMNS, "The log has no entries yet."), lambda entries: [str(item["rev"]) for item in entries])
    )
    return 0


@store.command()
@click.pass_obj
def check(session: Session) -> int:
    """Read and verify every entry. Exit code 1 when one is damaged."""
    return _report(session, "check")


@store.command()
@click.pass_obj
def repair(session: Session) -> int:
    """Set a damaged file aside and keep every entry up to the damage. Deletes nothing."""
    session.confirm("Repair the store? What lies after the damage is set aside.")
    return _report(session, "repair")


def _report(session: Session, action: str) -> int:
    session.timeout_s = session.timeout_s or _VERIFY_S
    found = session.client().send("POST", path_of("store", action))
    session.write(Printed(found, _told, lambda report: [str(report["good_rev"])]))
    return 0 if found.get("ok") else 1


def _told(report: dict[str, Any], _wide: bool, _width: int) -> str:
    where = report.get("file")
    if report.get("ok"):
        lines = [f"{where}: {report.get('entries')} entries, all good up to rev {report.get('good_rev')}"]
    else:
        lines = [
            f"{where} is damaged: {printable(str(report.get('problem')))}",
            f"good up to rev {report.get('good_rev')} of {report.get('head_rev')}: `piccoloctl store repair` keeps that",
        ]
    if report.get("set_aside"):
        lines.append(f"the damaged file is kept as {report['set_aside']}")
    if report.get("lost_revs"):
        lines.append(f"{report['lost_revs']} revs after the damage could not be kept")
    return "\n".join(lines)

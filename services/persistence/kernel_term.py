"""What to do about the term of `kernel`: it is led by who can write the store, and by nobody else. Pure."""

from __future__ import annotations

from enum import Enum

from piccolod.leadership.page import Term


class Step(Enum):
    CLOSE = "close"
    WITHDRAW = "withdraw"
    CAMPAIGN = "campaign"


def steps(*, able: bool, held: Term | None, holds: bool) -> tuple[Step, ...]:
    """`held`: the term on the page, `holds`: whether its gate is open. A term that was closed is never gone on with."""
    if not able:
        return (Step.CLOSE, Step.WITHDRAW) if held is not None else ()
    if held is not None and held.closing:
        return Step.WITHDRAW, Step.CAMPAIGN
    return () if holds else (Step.CAMPAIGN,)

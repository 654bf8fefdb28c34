"""Who leads the kernel: the rules without a clock, a disk or a page."""

from __future__ import annotations

import pytest

from piccolod.leadership.page import Term
from services.persistence.disk import LEAST_FAILURES, PATIENCE_S, WELL, refused
from services.persistence.kernel_term import Step, steps

OPEN, CLOSING = Term(7, 1), Term(7, 1, closing=True)


def test_one_refused_write_or_many_at_once_cost_no_term() -> None:
    disk = refused(WELL, "full", 100.0)
    assert not disk.persists
    for _ in range(100):
        disk = refused(disk, "full", 100.5)
    assert not disk.persists


def test_two_failures_far_apart_are_no_proof() -> None:
    """Nobody asked in between: a node that was frozen is not blamed for it."""
    assert not refused(refused(WELL, "full", 0.0), "full", 1000.0).persists


def test_a_disk_that_takes_nothing_for_the_patience_has_lost_it() -> None:
    disk, now = WELL, 50.0
    while not disk.persists:
        disk = refused(disk, f"at {now}", now)
        now += 1.0
    assert disk.last_at - disk.since_at == PATIENCE_S and disk.failures >= LEAST_FAILURES
    assert disk.reason == f"at {disk.last_at}"
    assert refused(disk, "still", now).persists


@pytest.mark.parametrize(
    ("able", "held", "holds", "wanted"),
    [
        (True, None, False, (Step.CAMPAIGN,)),
        (True, OPEN, True, ()),
        (True, CLOSING, False, (Step.WITHDRAW, Step.CAMPAIGN)),
        (True, OPEN, False, (Step.CAMPAIGN,)),  # the page is of another boot
        (False, None, False, ()),
        (False, OPEN, True, (Step.CLOSE, Step.WITHDRAW)),
        (False, CLOSING, False, (Step.CLOSE, Step.WITHDRAW)),
    ],
)
def test_the_term_follows_who_can_write(able: bool, held: Term | None, holds: bool, wanted: tuple[Step, ...]) -> None:
    assert steps(able=able, held=held, holds=holds) == wanted

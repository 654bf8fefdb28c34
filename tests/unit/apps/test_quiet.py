"""The silence around a lock."""

from __future__ import annotations

from services.apps.quiet import PATIENCE_S, Quiet


def test_it_holds_from_the_wish_until_the_unlock_that_follows_the_lock() -> None:
    quiet = Quiet()
    assert not quiet.holds(0.0)
    quiet.begin(10.0, locked=False)
    quiet.lock_is(False, 10.1)
    assert quiet.holds(10.1), "an unlocked store is no news before the lock"
    quiet.lock_is(True, 11.0)
    assert quiet.holds(10.0 + 100 * PATIENCE_S)
    quiet.lock_is(False, 5000.0)
    assert not quiet.holds(5000.0)


def test_without_a_lock_it_ends_by_itself() -> None:
    quiet = Quiet()
    quiet.begin(10.0, locked=False)
    assert not quiet.holds(10.0 + PATIENCE_S)


def test_a_lock_that_nobody_announced_silences_nobody() -> None:
    quiet = Quiet()
    quiet.lock_is(True, 1.0)
    assert not quiet.holds(1.0)

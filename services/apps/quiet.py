"""The silence around a lock: from the wish to lock until the store is unlocked again, no led app runs. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

# A lock follows at once, or its caller died: then the apps come back by themselves.
PATIENCE_S: Final = 30.0


class Quiet(msgspec.Struct, frozen=True):
    """`locked`: the lock that was wished for has come; only an unlock ends it. Until then it ends by itself.

    `wish`: which lock it is for, the last one: only who wished for that one calls it off.
    """

    until_at: float = 0.0
    locked: bool = False
    wish: str = ""

    def holds(self, now: float) -> bool:
        return self.locked or now < self.until_at


NONE: Final = Quiet()


def begun(quiet: Quiet, now: float, *, locked: bool, wish: str = "") -> Quiet:
    """`locked`: the store is known to be locked already."""
    return Quiet(now + PATIENCE_S, locked or quiet.locked, wish)


def after_news(quiet: Quiet, now: float, *, locked: bool) -> Quiet:
    """What is heard of the lock: an unlock ends the silence, but only one that comes after a lock."""
    if locked:
        return Quiet(quiet.until_at, quiet.holds(now), quiet.wish)
    return NONE if quiet.locked else quiet


def called_off(quiet: Quiet, wish: str = "") -> Quiet:
    """The lock of this wish failed. One that has come all the same counts, and so does another that was wished for since."""
    return quiet if quiet.locked or quiet.wish != wish else NONE


def resumed(quiet: Quiet, now: float) -> Quiet:
    """As a former life left it: it lasts no longer than one that begins now."""
    return Quiet(min(quiet.until_at, now + PATIENCE_S), quiet.locked, quiet.wish)

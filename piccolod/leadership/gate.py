"""The gate: may this process act for a resource, right now?

Called before and after each blocking step of a led action, and by the router for each connection: a check costs a few
microseconds and asks nobody. Whatever is not certain is a shut gate.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from piccolod import clock
from piccolod.errors import TermOver
from piccolod.leadership.page import PageReader


class Shut(StrEnum):
    """Why the gate is shut. The texts are what people read."""

    NO_PAGE = "the deadline page is absent or torn"
    OTHER_BOOT = "the deadline page is of an earlier boot"
    LATE = "the deadline has passed"
    NOT_LED = "this node does not lead it"
    CLOSING = "its term is being closed"
    OTHER_TERM = "another term has begun"


class Token(NamedTuple):
    """Names one term. `(gen, epoch)` is the form that travels with data and between nodes."""

    gen: int
    epoch: int
    token: int


class Gate:
    def __init__(self, reader: PageReader) -> None:
        self._reader = reader
        self._boot_id = clock.boot_id()

    def check(self, resource: str) -> Token:
        """The token of the open term. Raises TermOver."""
        page = self._reader.read()
        if page is None:
            raise TermOver(resource, Shut.NO_PAGE)
        if page.boot_id != self._boot_id:
            raise TermOver(resource, Shut.OTHER_BOOT)
        if clock.now() >= page.hard_at:
            raise TermOver(resource, Shut.LATE)
        term = page.terms.get(resource)
        if term is None:
            raise TermOver(resource, Shut.NOT_LED)
        if term.closing:
            raise TermOver(resource, Shut.CLOSING)
        return Token(page.gen, term.epoch, term.token)

    def still(self, resource: str, token: Token) -> None:
        """Raises TermOver unless the very term that `check` returned is open: the check *after* a blocking step."""
        if self.check(resource) != token:
            raise TermOver(resource, Shut.OTHER_TERM)

    def holds(self, resource: str) -> bool:
        try:
            self.check(resource)
        except TermOver:
            return False
        return True

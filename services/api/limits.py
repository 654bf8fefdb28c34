"""A bounded number of long calls at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from piccolod.errors import TooMany


class Seats:
    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self.taken = 0

    def check(self) -> None:
        """Raises TooMany when all are taken: before an answer begins, which could not be taken back."""
        if self.taken >= self._most:
            raise TooMany(f"{self._most} {self._what} are open already", hint="close one", retry_after_s=5.0)

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Raises TooMany when all are taken."""
        self.check()
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

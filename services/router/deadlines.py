"""Things that end at a time, each kind with its own span: connects, heads, farewells, held connections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Deadlines(Generic[Item]):
    """Items with one common span, so that the order of adding is the order of ending: all steps are O(1).

    A span that grows meanwhile (a listener's `hold` is changed) delays nobody's end by more than the difference.
    """

    __slots__ = ("_at",)

    def __init__(self) -> None:
        self._at: dict[Item, float] = {}

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, item: Item) -> bool:
        return item in self._at

    def __iter__(self) -> Iterator[Item]:
        return iter(list(self._at))

    def add(self, item: Item, at: float) -> None:
        self._at[item] = at

    def discard(self, item: Item) -> None:
        self._at.pop(item, None)

    def expired(self, now: float) -> list[Item]:
        """Removes and returns what has ended."""
        ended: list[Item] = []
        for item, at in self._at.items():
            if at > now:
                break
            ended.append(item)
        for item in ended:
            del self._at[item]
        return ended

    def take(self, count: int) -> list[Item]:
        """Removes and returns the oldest."""
        taken = [item for item, _ in zip(self._at, range(count), strict=False)]
        for item in taken:
            del self._at[item]
        return taken

"""The last value of every retained topic, and the sequence of every topic."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

Frames = tuple[bytes, bytes, bytes]

_TOPICS: Final = 20_000  # bounds memory against a publisher that invents keys


class LastValues:
    """Pure. Stamps `topic_seq`, keeps what late joiners need, forgets the longest unchanged topics first."""

    def __init__(self) -> None:
        self._seq: OrderedDict[str, int] = OrderedDict()
        self._frames: dict[str, Frames] = {}
        self._changed: dict[str, float] = {}

    def next_seq(self, topic: str, now: float) -> int:
        seq = self._seq.get(topic, 0) + 1
        self._seq[topic] = seq
        self._seq.move_to_end(topic)
        self._changed[topic] = now
        if len(self._seq) > _TOPICS:
            oldest, _ = self._seq.popitem(last=False)
            self._frames.pop(oldest, None)
            self._changed.pop(oldest, None)
        return seq

    def keep(self, topic: str, frames: Frames) -> None:
        self._frames[topic] = frames

    def snapshot(self, prefixes: tuple[str, ...]) -> tuple[dict[str, int], tuple[Frames, ...]]:
        """(last topic_seq of each topic below the prefixes, the frames of the retained ones)."""
        topics = [topic for topic in self._seq if topic.startswith(prefixes)] if prefixes else []
        return {topic: self._seq[topic] for topic in topics}, tuple(self._frames[t] for t in topics if t in self._frames)

    def changed_since(self, then: float) -> dict[str, int]:
        """The topics for the beat. Older ones need no beat: a reader that missed all beats since resyncs anyway."""
        for topic in [topic for topic, at in self._changed.items() if at < then]:
            del self._changed[topic]
        return {topic: self._seq[topic] for topic in self._changed}

"""The last value of every retained topic, and the sequence of every topic."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

Frames = tuple[bytes, bytes, bytes]

_TOPICS_A_SENDER: Final = 8192  # bounds memory against a publisher that invents keys; it loses its own topics, no other's


class LastValues:
    """Pure. Stamps `topic_seq`, keeps what late joiners need, forgets a sender's longest unchanged topics first."""

    def __init__(self, topics_a_sender: int = _TOPICS_A_SENDER) -> None:
        self._most = topics_a_sender
        self._seq: dict[str, int] = {}
        self._of_sender: dict[str, OrderedDict[str, None]] = {}
        self._frames: dict[str, Frames] = {}
        self._changed: dict[str, float] = {}
        self._forgotten_seq = 0

    def next_seq(self, sender: str, topic: str, now: float) -> int:
        """One more than the topic's last. A topic that was forgotten goes on above what anybody has seen of it."""
        seq = self._seq.get(topic, self._forgotten_seq) + 1
        self._seq[topic] = seq
        self._changed[topic] = now
        topics = self._of_sender.setdefault(sender, OrderedDict())
        topics[topic] = None
        topics.move_to_end(topic)
        if len(topics) > self._most:
            oldest, _ = topics.popitem(last=False)
            self._forgotten_seq = max(self._forgotten_seq, self._seq.pop(oldest))
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

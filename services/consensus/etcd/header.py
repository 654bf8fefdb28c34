"""Which etcd answered, and how far it was: what shows that etcd was restored from a backup, or is another one.

Leadership.md, rule 5: no answer is believed before its header has passed.
"""

from __future__ import annotations

from typing import Any

import msgspec

from piccolod.errors import StoreRestored
from piccolod.leadership.actions import RESTORED_HINT


class Header(msgspec.Struct, frozen=True):
    cluster_id: int
    member_id: int
    revision: int
    raft_term: int

    @classmethod
    def of(cls, message: Any) -> Header:
        header = message.header
        return cls(header.cluster_id, header.member_id, header.revision, header.raft_term)


class Lineage:
    """The etcd that this node knows: its cluster id, 0 while none was seen, and the highest revision that it showed."""

    def __init__(self, cluster_id: int = 0, revision: int = 0) -> None:
        self.cluster_id = cluster_id
        self.revision = revision
        self._broken: StoreRestored | None = None

    def mark(self) -> int:
        """Taken before a request is sent: no transaction or linearizable read sent from now on may answer below it."""
        return self.revision

    def check(self, header: Header, mark: int | None) -> None:
        """Learns from an answer. Raises StoreRestored, for this answer and every one after it.

        `mark` None: a keepalive, a watch or a serializable read, which may be older than what was seen before, or an answer
        whose header 3.4 leaves empty.
        """
        empty = mark is None and not header.cluster_id
        if self._broken is None and not empty:
            self._broken = self._judge(header, mark)
        if self._broken is not None:
            raise self._broken
        self.cluster_id = self.cluster_id or header.cluster_id
        self.revision = max(self.revision, header.revision)

    def _judge(self, header: Header, mark: int | None) -> StoreRestored | None:
        if self.cluster_id and header.cluster_id != self.cluster_id:
            return StoreRestored(
                f"etcd's cluster id is {header.cluster_id:x}, this node knows {self.cluster_id:x}: restored, or another one",
                hint=RESTORED_HINT,
            )
        if mark is not None and header.revision < mark:
            return StoreRestored(
                f"etcd is at revision {header.revision} and had shown {mark} before: it was restored from a backup",
                hint=RESTORED_HINT,
            )
        return None


class Unjudged(Lineage):
    """Believes every answer: for who judges the headers of what it reads by itself, as the leadership core does."""

    def check(self, header: Header, mark: int | None) -> None:
        if header.cluster_id:
            self.cluster_id, self.revision = header.cluster_id, header.revision

"""What etcd says beside leadership, as of the last read and what was watched since: nodes, candidates, the log's head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from piccolod.leadership import keys
from piccolod.leadership.records import ChangeRecord
from piccolod.leadership.view import Change, Record
from piccolod.protocol.cluster import KnownMember
from services.consensus.cluster_records import (
    CANDIDATE,
    DRAIN,
    LOG,
    MEMBER,
    NODE,
    PAUSE,
    CandidateRecord,
    DrainRecord,
    HeadRecord,
)
from services.consensus.recent_entries import RecentEntries

_KINDS = (NODE, CANDIDATE, keys.KERNEL_HEAD, PAUSE, DRAIN)


class Facts:
    """`nodes`, `candidates` and `drained` by node. `head` with its mod revision; None: the log is empty.

    `changes`: the last of each. `entries`: of the log, as far as the watch brought them.
    """

    def __init__(self) -> None:
        self.known = False  # whether anything was read yet
        self.nodes: Mapping[str, KnownMember] = {}
        self.candidates: Mapping[str, CandidateRecord] = {}
        self.entries = RecentEntries()
        self.head: Record[HeadRecord] | None = None
        self.paused = False
        self.drained: Mapping[str, DrainRecord] = {}
        self.changes: dict[str, ChangeRecord] = {}
        self.changed_count = 0
        self._records: dict[str, Record[Any]] = {}

    def read(self, records: Mapping[str, Record[Any]]) -> None:
        """A linearizable read: all there is."""
        self.known = True
        self._take({key: record for key, record in records.items() if key.startswith(_KINDS)})

    def watched(self, changes: Iterable[Change]) -> None:
        """What a revision did, after the last one that was told here."""
        records = dict(self._records)
        for change in changes:
            if change.key.startswith(LOG) and change.record is not None:
                self.entries.put(change.record.value)
            elif change.key.startswith(keys.HISTORY) and change.record is not None:
                self.changed(change.record.value)
            elif change.key.startswith(_KINDS):
                records.pop(change.key, None)
                if change.record is not None:
                    records[change.key] = change.record
        if records != self._records:
            self._take(records)

    def changed(self, change: ChangeRecord) -> None:
        last = self.changes.get(change.resource)
        # The end of an epoch comes after its beginning, and has no node.
        if last is None or (last.epoch, not last.to_node) <= (change.epoch, not change.to_node):
            self.changes[change.resource] = change
            self.changed_count += 1

    def is_witness(self, node: str) -> bool:
        """It votes in etcd and leads nothing."""
        record = self.nodes.get(node)
        return record is not None and record.role != MEMBER

    def _take(self, records: dict[str, Record[Any]]) -> None:
        self._records = records
        self.nodes = _named(records, NODE)
        self.candidates = _named(records, CANDIDATE)
        self.head = records.get(keys.KERNEL_HEAD)
        self.paused = PAUSE in records
        self.drained = _named(records, DRAIN)


def _named(records: Mapping[str, Record[Any]], kind: str) -> dict[str, Any]:
    return {key.removeprefix(kind): record.value for key, record in records.items() if key.startswith(kind)}

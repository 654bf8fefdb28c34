"""A linearizable store with revisions, leases and a log for watchers: what leadership needs of etcd, and etcd's bad habits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from piccolod.leadership import keys
from piccolod.leadership.events import Header
from piccolod.leadership.keys import GenRecord
from piccolod.leadership.transactions import Compare, Field, Outcome, Transaction
from piccolod.leadership.view import Change, Record
from tests.sim.world import World


class Lease:
    __slots__ = ("expires_at", "keys", "ttl_s")

    def __init__(self, ttl_s: float, expires_at: float) -> None:
        self.ttl_s = ttl_s
        self.expires_at = expires_at
        self.keys: set[str] = set()


class Store:
    """`on_commit(transaction, rev)` is called at the very moment of a commit."""

    def __init__(self, world: World, election_s: float) -> None:
        self.world = world
        self.election_s = election_s
        self.cluster_id = 77
        self.rev = 1
        self.records: dict[str, Record[Any]] = {}
        self.log: list[Change] = []
        self.compacted = 0
        self.down_until = -1.0
        self.on_commit: list[Callable[[Transaction, int], None]] = []
        self.on_change: list[Callable[[str, Record[Any] | None], None]] = []
        self._leases: dict[int, Lease] = {}
        self._next_lease = 0
        self._read: tuple[int, Mapping[str, Record[Any]]] = (0, {})
        self._apply([(keys.GEN, GenRecord(1, self.cluster_id), 0)], [])

    @property
    def header(self) -> Header:
        return Header(self.cluster_id, self.rev)

    def down(self) -> bool:
        return self.world.now < self.down_until

    def elect(self, for_s: float) -> None:
        """No answers for a while; then every lease begins anew with its full TTL."""
        self.down_until = max(self.down_until, self.world.now + for_s)
        for lease in self._leases.values():
            lease.expires_at = max(lease.expires_at, self.down_until + lease.ttl_s)

    def read(self) -> Mapping[str, Record[Any]]:
        if self._read[0] != self.rev:
            self._read = (self.rev, dict(self.records))
        return self._read[1]

    def since(self, rev: int) -> tuple[Change, ...]:
        """All changes after the revision."""
        first = len(self.log)
        while first and self.log[first - 1].rev > rev:
            first -= 1
        return tuple(self.log[first:])

    def commit(self, transaction: Transaction) -> Outcome:
        if not all(self._holds(compare) for compare in transaction.compares):
            return Outcome.REFUSED
        if any(put.lease_id and put.lease_id not in self._leases for put in transaction.puts):
            return Outcome.NO_LEASE
        self._apply([(put.key, put.value, put.lease_id) for put in transaction.puts], transaction.deletes)
        for told in self.on_commit:
            told(transaction, self.rev)
        return Outcome.COMMITTED

    def grant(self, ttl_s: float) -> int:
        self._next_lease += 1
        self._leases[self._next_lease] = Lease(ttl_s, self.world.now + ttl_s)
        self.world.after(ttl_s, self._expire, self._next_lease)
        return self._next_lease

    def keep_alive(self, lease_id: int) -> bool:
        lease = self._leases.get(lease_id)
        if lease is not None:
            lease.expires_at = self.world.now + lease.ttl_s
        return lease is not None

    def revoke(self, lease_id: int) -> None:
        lease = self._leases.pop(lease_id, None)
        gone = sorted(key for key in lease.keys if key in self.records) if lease is not None else []
        if gone:
            self._apply([], gone)

    def go_back(self, records: Mapping[str, Record[Any]], rev: int, cluster_id: int) -> None:
        """A backup was restored."""
        self.records, self.rev, self.cluster_id = dict(records), rev, cluster_id
        self.log.clear()
        self.compacted = rev
        self._leases.clear()
        self._read = (0, {})

    def begin_anew(self, gen: int) -> None:
        """The operator vouches for this etcd."""
        self._apply([(keys.GEN, GenRecord(gen, self.cluster_id), 0)], [])

    def _expire(self, lease_id: int) -> None:
        lease = self._leases.get(lease_id)
        if lease is None:
            return
        if lease.expires_at > self.world.now + 1e-9:
            self.world.at(lease.expires_at, self._expire, lease_id)
        elif self.down():
            self.world.at(self.down_until, self._expire, lease_id)
        else:
            self.revoke(lease_id)

    def _holds(self, compare: Compare) -> bool:
        record = self.records.get(compare.key)
        found: Any
        if compare.field is Field.MOD:
            found = record.mod if record is not None else 0
        elif compare.field is Field.CREATE:
            found = record.create if record is not None else 0
        else:
            found = record.value if record is not None else None
        return (found == compare.value) is compare.equal

    def _apply(self, puts: list[tuple[str, Any, int]], deletes: Any) -> None:
        self.rev += 1
        rev = self.rev
        for key in deletes:
            if self.records.pop(key, None) is not None:
                self._changed(Change(key, rev, None))
        for key, value, lease_id in puts:
            known = self.records.get(key)
            self.records[key] = record = Record(value, known.create if known is not None else rev, rev)
            for lease in self._leases.values():
                lease.keys.discard(key)
            if lease_id:
                self._leases[lease_id].keys.add(key)
            self._changed(Change(key, rev, record))
        if len(self.log) > 4000:
            self.compacted = self.log[1999].rev
            del self.log[:2000]

    def _changed(self, change: Change) -> None:
        self.log.append(change)
        for told in self.on_change:
            told(change.key, change.record)

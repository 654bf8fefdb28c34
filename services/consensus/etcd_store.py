"""The leadership core's transactions, reads and changes, spoken to real etcd: where the two vocabularies meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import Struct

from piccolod.errors import PiccoloError
from piccolod.leadership import keys
from piccolod.leadership.events import Header
from piccolod.leadership.transactions import Compare, Field, Outcome, Transaction
from piccolod.leadership.view import Change, Record
from services.consensus import cluster_records, wire
from services.consensus.etcd import transaction as etcd
from services.consensus.etcd.client import Client
from services.consensus.etcd.failures import LeaseLost
from services.consensus.etcd.transaction import Is, KeyValue, Of, Range, Result
from services.consensus.etcd.watch import Revision

# Everything that is decided upon or shown; the sealed log and the history are not.
_KINDS: Final = (
    keys.SESSION, keys.EPOCH, keys.LEAD, keys.ACK, keys.INTENT, cluster_records.NODE, cluster_records.CANDIDATE,
    cluster_records.DRAIN,
)  # fmt: skip
_SINGLE: Final = (keys.GEN, keys.KERNEL_HEAD, cluster_records.PAUSE)
_OF: Final = {Field.CREATE: Of.CREATED, Field.MOD: Of.MODIFIED, Field.VALUE: Of.VALUE}


class Attempt(Struct, frozen=True):
    """What became of a transaction. `error`: why it is not known, or was not done."""

    outcome: Outcome
    header: Header | None
    error: PiccoloError | None = None


class Snapshot(Struct, frozen=True):
    """A linearizable read: what there was at the header's revision."""

    header: Header
    records: Mapping[str, Record[Any]]


class EtcdStore:
    """Of one cluster; keys are relative to its prefix."""

    def __init__(self, client: Client, prefix: str) -> None:
        self.client: Final = client
        self.prefix: Final = prefix

    async def commit(self, transaction: Transaction, within_s: float) -> Attempt:
        """Tries once."""
        try:
            result = await self.client.transact(self._translated(transaction), within_s)
        except LeaseLost as error:
            return Attempt(Outcome.NO_LEASE, None, error)
        except PiccoloError as error:
            return Attempt(Outcome.UNKNOWN, None, error)
        return Attempt(Outcome.COMMITTED if result.succeeded else Outcome.REFUSED, header_of(result))

    async def read(self, within_s: float) -> Snapshot:
        """Raises PiccoloError."""
        wanted = [Range(self.prefix + kind, prefix=True) for kind in _KINDS] + [Range(self.prefix + key) for key in _SINGLE]
        result = await self.client.look(wanted, within_s)
        return Snapshot(header_of(result), dict(self._records(item for found in result.answers for item in _keys(found))))

    async def revisions(self, wanted: Iterable[str], within_s: float) -> dict[str, int]:
        """The mod revisions of keys, as of now; absent ones are missing. Raises PiccoloError."""
        result = await self.client.look([Range(self.prefix + key, keys_only=True) for key in wanted], within_s)
        items = (item for answer in result.answers for item in _keys(answer))
        return {item.key.removeprefix(self.prefix): item.mod_revision for item in items}

    def changes(self, news: Revision) -> tuple[Change, ...]:
        found: list[Change] = []
        for event in news.events:
            key = event.item.key.removeprefix(self.prefix)
            if key.startswith(cluster_records.LOG):
                if not event.deleted and key.removeprefix(cluster_records.LOG).isdecimal():
                    entry = wire.entry(key, event.item.value)
                    found.append(Change(key, news.revision, Record(entry, event.item.create_revision, event.item.mod_revision)))
            elif event.deleted:
                found.append(Change(key, news.revision, None))
            elif (record := _record(key, event.item)) is not None:
                found.append(Change(key, news.revision, record))
        return tuple(found)

    # --- inside

    def _translated(self, transaction: Transaction) -> etcd.Transaction:
        compares = tuple(self._compare(compare) for compare in transaction.compares)
        puts = tuple(etcd.Put(self.prefix + put.key, wire.encode(put.value), put.lease_id) for put in transaction.puts)
        deletes = tuple(etcd.Delete(self.prefix + key) for key in transaction.deletes)
        return etcd.Transaction(compares, puts + deletes)

    def _compare(self, compare: Compare) -> etcd.Compare:
        relation = Is.EQUAL if compare.equal else Is.NOT_EQUAL
        key, value = self.prefix + compare.key, compare.value
        if compare.field is not Field.VALUE:
            return etcd.Compare(key, _OF[compare.field], relation, value)
        if value is None:  # absent
            return etcd.Compare(key, Of.CREATED, relation, 0)
        return etcd.Compare(key, Of.VALUE, relation, wire.encode(value))

    def _records(self, items: Iterable[KeyValue]) -> Iterable[tuple[str, Record[Any]]]:
        for item in items:
            key = item.key.removeprefix(self.prefix)
            if (record := _record(key, item)) is not None:
                yield key, record


def header_of(result: Result) -> Header:
    return Header(result.header.cluster_id, result.revision)


def _record(key: str, item: KeyValue) -> Record[Any] | None:
    value = wire.decode(key, item.value)
    return None if value is None else Record(value, item.create_revision, item.mod_revision)


def _keys(answer: object) -> tuple[KeyValue, ...]:
    return answer.keys if isinstance(answer, etcd.Found) else ()

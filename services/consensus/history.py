"""The last changes of leadership, as etcd keeps them: each was written in the very transaction that made it."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from piccolod.errors import PiccoloError, StoreUnavailable
from piccolod.leadership import keys
from piccolod.leadership.records import ChangeRecord
from services.consensus import wire
from services.consensus.etcd.transaction import KeyValue, Range
from services.consensus.etcd_store import EtcdStore

# Older ones are trimmed with the log.
LENGTH: Final = 1000
_READ_S: Final = 2.0


async def read(store: EtcdStore, resource: str | None, limit: int) -> tuple[ChangeRecord, ...]:
    """Newest first. Without a quorum what this node's own member knows. Raises StoreUnavailable when nobody answers."""
    prefix = store.prefix + keys.HISTORY + ("" if resource is None else f"{resource}/")
    found: list[KeyValue] | tuple[KeyValue, ...]
    try:
        found, _ = await store.client.list(prefix, store.client.rpc_s * 2)
    except StoreUnavailable:
        local, _ = await store.client.find(Range(prefix, prefix=True, limit=2 * LENGTH, serializable=True), _READ_S)
        found = local.keys
    newest = sorted(found, key=lambda item: item.mod_revision, reverse=True)[:limit]
    changes = (wire.decode(keys.HISTORY, item.value) for item in newest)
    return tuple(change for change in changes if isinstance(change, ChangeRecord))


async def last(store: EtcdStore) -> tuple[ChangeRecord, ...]:
    """As many as there are, newest first; none when etcd does not answer."""
    with suppress(PiccoloError):
        return await read(store, None, LENGTH)
    return ()

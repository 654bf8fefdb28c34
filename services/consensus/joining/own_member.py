"""What this node's own member of etcd has, which it tells without a quorum too: what it had applied was committed.

Where the local log had not come so far when the others were lost, it is found here. Not so after a restart of that member, as
by a loss of power: etcd 3.4 serves no client before it has made itself known through a quorum (EtcdServer.publish).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Final

import msgspec

from piccolod import etcd_conf
from piccolod.errors import PiccoloError
from piccolod.leadership import keys
from piccolod.leadership.keys import EpochRecord
from piccolod.protocol.log import SealedEntry
from services.consensus import wire
from services.consensus.cluster_records import LOG, HeadRecord, log_key
from services.consensus.etcd.stubs import RANGE
from services.consensus.etcd.transaction import Found, KeyValue, Range
from services.consensus.etcd.upkeep import local_client

_ASK_S: Final = 1.0
_PAGE: Final = 8  # of up to 384 KiB each, in one message of the bus


class OwnMember:
    """Best effort. `unread`: something could not be read, and nothing stands for it.

    Raises StoreUnavailable for certificates that cannot be read.
    """

    def __init__(self, settings: etcd_conf.Settings, prefix: str) -> None:
        self._client = local_client(settings)
        self._prefix = prefix
        self.unread = False

    async def aclose(self) -> None:
        await self._client.close()

    async def epochs(self, seen: Mapping[str, EpochRecord]) -> dict[str, EpochRecord]:
        """The last term of every resource, as it was seen or as it is here."""
        found = dict(seen)
        for item in await self._all(Range(self._prefix + keys.EPOCH, prefix=True, serializable=True)):
            key = item.key.removeprefix(self._prefix)
            record, resource = wire.decode(key, item.value), key.removeprefix(keys.EPOCH)
            if isinstance(record, EpochRecord) and (resource not in found or found[resource].epoch < record.epoch):
                found[resource] = record
        return found

    async def head_rev(self) -> int:
        """Of the log, for all that is not verified."""
        for item in await self._all(Range(self._prefix + keys.KERNEL_HEAD, serializable=True)):
            record = wire.decode(keys.KERNEL_HEAD, item.value)
            return record.rev if isinstance(record, HeadRecord) else 0
        return 0

    async def keyset(self) -> bytes:
        for item in await self._all(Range(self._prefix + keys.KEYSET, serializable=True)):
            return item.value
        return b""

    async def entries(self, after: int) -> AsyncIterator[tuple[SealedEntry, ...]]:
        """Of the log behind `after`, in order, a few at a time. Ends at one that cannot be read."""
        while True:
            wanted = Range(
                self._prefix + LOG, prefix=True, serializable=True, limit=_PAGE, after=self._prefix + log_key(after)
            )  # fmt: skip
            items = await self._all(wanted)
            try:
                page = tuple(msgspec.msgpack.decode(item.value, type=SealedEntry) for item in items)
            except msgspec.MsgspecError:
                self.unread = True
                return
            if not page:
                return
            yield page
            after = page[-1].rev

    async def _all(self, wanted: Range) -> tuple[KeyValue, ...]:
        try:
            return Found.of(await self._client.ask(self._client.endpoint(), RANGE, wanted.request(), _ASK_S)).keys
        except PiccoloError:
            self.unread = True
            return ()

"""Trims the log behind the newest snapshot, and the history: what bounds etcd. Only the kernel's leader does it.

Everything is looked up anew, so that a trim that was cut short anywhere is finished by the next one, on whichever node.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from piccolod.errors import PiccoloError
from piccolod.leadership import keys
from services.consensus import history
from services.consensus.cluster_records import LOG, SNAPSHOT, log_key
from services.consensus.control_log import ControlLog
from services.consensus.etcd import status
from services.consensus.etcd.failures import Compacted
from services.consensus.etcd.transaction import Range
from services.consensus.etcd_leaser import EtcdLeaser

# For followers that are a moment behind: at most 7.5 MiB of the largest entries.
KEPT_REVS: Final = 20
_AT_ONCE: Final = 100  # deletes of one transaction, which has 128 operations
_LIST_S: Final = 5.0


class Trim:
    def __init__(self, leaser: EtcdLeaser, control_log: ControlLog, *, compacts: bool) -> None:
        """`compacts`: not an etcd that others keep their own history in."""
        self._leaser = leaser
        self._compacts = compacts
        self._store = leaser.driver.store
        self._log = control_log

    async def run(self, token: int) -> int:
        """Under the kernel's token; returns how many keys went. Raises what a proposal raises."""
        snapshot = await self._log.snapshot()
        gone: list[str] = []
        if snapshot.rev:
            oldest = log_key(max(0, snapshot.rev - KEPT_REVS))
            gone += [key for key in await self._keys(LOG) if key <= oldest]
            current = f"{SNAPSHOT}/{snapshot.rev:020}/"
            gone += [key for key in await self._keys(f"{SNAPSHOT}/") if key < current]
        gone += await self._old_history()
        revision = 0
        for first in range(0, len(gone), _AT_ONCE):
            revision = await self._leaser.propose(token, (), (), tuple(gone[first : first + _AT_ONCE]))
        if revision and self._compacts:
            await self._compact(revision)
        return len(gone)

    async def _compact(self, revision: int) -> None:
        """What was deleted stays on the disk until then. Watches that are behind it list again."""
        with suppress(Compacted):
            await status.compact(self._store.client, revision, _LIST_S)

    async def _keys(self, kind: str) -> list[str]:
        wanted = Range(self._store.prefix + kind, prefix=True, keys_only=True)
        found, _ = await self._store.client.find(wanted, _LIST_S)
        return [item.key.removeprefix(self._store.prefix) for item in found.keys]

    async def _old_history(self) -> Sequence[str]:
        wanted = Range(self._store.prefix + keys.HISTORY, prefix=True, keys_only=True)
        found, _ = await self._store.client.find(wanted, _LIST_S)
        newest_first = sorted(found.keys, key=lambda item: item.mod_revision, reverse=True)
        return [item.key.removeprefix(self._store.prefix) for item in newest_first[history.LENGTH :]]


async def attempt(trim: Trim, token: int) -> PiccoloError | None:
    """What kept it from being done; the next snapshot, or the next term, tries again."""
    try:
        await trim.run(token)
    except PiccoloError as error:
        return error
    return None

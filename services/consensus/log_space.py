"""How full etcd is: writes of the store stop at half of its quota, so that heartbeats never do.

A full etcd stops everything. Its own alarm comes at the quota, and says no for heartbeats too.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from piccolod.errors import PiccoloError
from services.consensus.etcd import status
from services.consensus.etcd.client import Client

_LOOK_S: Final = 5.0
_LOOK_FULL_S: Final = 0.5
_SHARE: Final = 0.5


class Space:
    def __init__(self, client: Client, quota_bytes: int) -> None:
        """`quota_bytes`: of an etcd that does not tell it."""
        self._client = client
        self._limit_bytes = int(quota_bytes * _SHARE)
        self._used_bytes = 0
        self._written_bytes = 0  # since that was measured

    def full(self) -> str:
        """Why no entry is taken; empty while there is room."""
        used_bytes = self._used_bytes + self._written_bytes
        if used_bytes < self._limit_bytes:
            return ""
        return f"etcd holds {used_bytes >> 20} MiB, and the log may fill it up to {self._limit_bytes >> 20} MiB"

    def wrote(self, size_bytes: int) -> None:
        self._written_bytes += size_bytes

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_FULL_S if self.full() else _LOOK_S)

    async def look(self) -> None:
        """What is in use counts: pages that a trimmed log has left are written again."""
        written_bytes = self._written_bytes
        with suppress(PiccoloError):
            told = await status.status(self._client, self._client.endpoint())
            self._used_bytes = told.used_bytes
            self._limit_bytes = int(told.quota_bytes * _SHARE) or self._limit_bytes
            self._written_bytes -= written_bytes

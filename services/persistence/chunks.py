"""The snapshot that a move takes in pieces, for a message of the bus has 4 MiB at most."""

from __future__ import annotations

import asyncio
from typing import Final

from piccolod.errors import NotFound
from piccolod.protocol.log import CHUNK_BYTES

_KEPT_S: Final = 60.0


class Chunks:
    """Of the snapshot that was exported last, encoded, until the last one was taken, or none for a minute."""

    def __init__(self) -> None:
        self._rev = 0
        self._raw = b""
        self._forget: asyncio.TimerHandle | None = None

    def keep(self, rev: int, raw: bytes) -> None:
        self._drop()
        if raw:
            self._rev, self._raw = rev, raw
            self._keep_on()

    def take(self, rev: int, index: int) -> bytes:
        """Raises NotFound."""
        chunk = self._raw[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES] if rev == self._rev and index >= 0 else b""
        if not chunk:
            raise NotFound(f"chunk {index} of snapshot {rev} is not kept here", hint="try again from the beginning")
        if (index + 1) * CHUNK_BYTES >= len(self._raw):
            self._drop()
        else:
            self._keep_on()
        return chunk

    def _keep_on(self) -> None:
        if self._forget is not None:
            self._forget.cancel()
        self._forget = asyncio.get_running_loop().call_later(_KEPT_S, self._drop)

    def _drop(self) -> None:
        self._rev, self._raw = 0, b""
        if self._forget is not None:
            self._forget.cancel()

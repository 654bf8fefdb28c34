"""The log's file on a member of a cluster: a copy of what is committed in etcd, sealed, appended in order and verified before.

`synchronous=NORMAL` and no high-water mark: what a power loss takes from its end is fetched again. Where the cluster gives a
snapshot in the place of entries that it keeps no more, the file says so by a gap.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from piccolod.errors import PiccoloError, StoreCorrupt, StoreFull, StoreUnavailable
from services.persistence.chain import Chain
from services.persistence.entry import Sealed, SnapshotHeader
from services.persistence.ledger import Item
from services.persistence.log import Gap, LogFile, Meta

T = TypeVar("T")

# Commits of this node that its own disk does not take yet: beyond these no more are made here.
UNFILED_BYTES: Final = 8 * 1024 * 1024


class LocalCopy:
    """`chain` is the end of the file. `on_trouble(None)`: the disk took something again."""

    def __init__(
        self,
        db: Path,
        chain: Chain,
        meta: Meta,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        on_trouble: Callable[[PiccoloError | None], None],
    ) -> None:
        """Of a file that was verified up to `chain`. Raises StoreUnavailable, StoreCorrupt."""
        self.db = db
        self.chain = chain
        self.meta = meta
        self._spawn = spawn
        self._on_trouble = on_trouble
        self._unfiled: deque[Item] = deque()
        self._unfiled_bytes = 0
        self._trouble: PiccoloError | None = None
        self._filing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="copy")
        self._log: LogFile | None = LogFile(db, synced=False)

    def check_room(self) -> None:
        """Raises the disk's own reason while too much of what was committed here waits for it."""
        if self._trouble is not None and self._unfiled_bytes > UNFILED_BYTES:
            raise _again(self._trouble)

    def submit(self, items: Sequence[Item]) -> None:
        """Committed in the cluster and visible here already: to be filed soon, and until it is."""
        self._unfiled.extend(items)
        self._unfiled_bytes += sum(_size(item.sealed) for item in items)
        if self._task is None:
            self._task = self._spawn(self._file_soon())

    async def append(self, items: Sequence[Item]) -> None:
        """Entries that follow `chain`, in the file when this returns. Raises StoreFull, StoreUnavailable, StoreCorrupt."""
        async with self._filing:
            await self._file_all()
            await self._reporting(lambda: self._write(items))
            if items:
                self.chain.advance(items[-1].header, items[-1].sealed.digest)

    async def install(self, snapshot: Sealed, header: SnapshotHeader) -> None:
        """A verified snapshot stands for everything up to its rev from now on. Raises as `append`."""
        async with self._filing:
            gaps = (*self.meta.gaps, Gap(self.chain.rev + 1, header.rev)) if header.rev > self.chain.rev else self.meta.gaps
            meta = msgspec.structs.replace(self.meta, gaps=gaps)
            await self._reporting(lambda: self._opened().fill((), (snapshot,), meta))
            self._unfiled.clear()
            self._unfiled_bytes = 0
            self.meta = meta
            self.chain.stand_on(header)

    async def keep_snapshot(self, snapshot: Sealed) -> None:
        """Only bounds the replay. Raises as `append`."""
        async with self._filing:
            await self._file_all()
            await self._in_thread(lambda: self._opened().add_snapshot(snapshot, self.meta.gaps))

    async def size_after(self, rev: int) -> tuple[int, int]:
        """As `LogReader.size_after`."""
        async with self._filing:
            return await self._in_thread(lambda: self._opened().size_after(rev))

    async def recover(self) -> None:
        """Tries again what the disk refused. Safe to call at any time."""
        if self._trouble is None:
            return
        try:
            async with self._filing:
                await self._file_all()
                await self._reporting(lambda: self._opened().probe())
        except PiccoloError:
            return  # reported

    async def close(self) -> None:
        """Files what waits, once; what the disk refuses now is fetched by the next life."""
        try:
            async with self._filing:
                await self._file_all()
        except PiccoloError:
            pass
        if self._task is not None:
            await asyncio.wait([self._task])
        await asyncio.to_thread(self._thread.shutdown)
        if self._log is not None:
            self._log.close()
            self._log = None

    async def _file_soon(self) -> None:
        try:
            async with self._filing:
                await self._file_all()
        except PiccoloError:
            return  # reported, and tried again by `recover`
        finally:
            self._task = None

    async def _file_all(self) -> None:
        while self._unfiled:
            items = list(self._unfiled)
            await self._reporting(lambda items=items: self._write(items))  # type: ignore[misc]
            for item in items:
                self._unfiled.popleft()
                self._unfiled_bytes -= _size(item.sealed)
            self.chain.advance(items[-1].header, items[-1].sealed.digest)

    def _write(self, items: Sequence[Item]) -> None:
        """In the thread."""
        log = self._opened()
        if self._trouble is not None:
            # What a refused transaction left is looked up: it may be there all the same.
            there = {entry.rev: entry.digest for entry in log.entries(after=self.chain.rev)}
            if any(there.get(item.sealed.rev, item.sealed.digest) != item.sealed.digest for item in items):
                raise StoreCorrupt(f"{self.db} is damaged: it holds another entry {min(there)} than the cluster")
            items = [item for item in items if item.sealed.rev not in there]
        if items:
            log.append([item.sealed for item in items])

    def _opened(self) -> LogFile:
        """In the thread. After trouble by a new connection: an old one may not find out that the disk is well again."""
        if self._trouble is not None and self._log is not None:
            self._log.close()
            self._log = None
        if self._log is None:
            self._log = LogFile(self.db, synced=False)
        return self._log

    async def _reporting(self, work: Callable[[], None]) -> None:
        try:
            await self._in_thread(work)
        except PiccoloError as error:
            self._trouble = error
            self._on_trouble(error)
            raise
        if self._trouble is not None:
            self._trouble = None
            self._on_trouble(None)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _size(entry: Sealed) -> int:
    return len(entry.header) + len(entry.sealed)


def _again(trouble: PiccoloError) -> PiccoloError:
    kind = StoreFull if isinstance(trouble, StoreFull) else StoreUnavailable
    return kind(trouble.detail, hint="it is tried again by itself, each second")

"""Brings this member's log to the head of the cluster's: fetch, verify, file, and only then show.

Nothing is believed: an entry counts when it follows the last one (rev, parent), is whole (digest), is of this cluster and of no
older term, and, while the key is held, opens. What does not is left out and named; the last good rev stays, and it is fetched
again. Without the key sealed entries are filed after the checks that need none; the next unlock proves the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec
import structlog

from piccolod.errors import NotFound, StoreCorrupt
from piccolod.protocol.base import Reply, Request
from piccolod.protocol.log import GetEntries, GetHead, GetSnapshot, GetSnapshotChunk, Head, SealedEntry
from services.persistence.chain import Broken, Chain, Orphan, check_snapshot
from services.persistence.entry import CannotOpen, Sealed, SnapshotHeader, open_bytes, open_entry
from services.persistence.ledger import Folded, Item, Ledger
from services.persistence.local_copy import LocalCopy
from services.persistence.secret import SecretKey
from services.persistence.state import State

ASK_S: Final = 2.0
PAGE_ENTRIES: Final = 256
# A message of the bus has 4 MiB at most, and one entry may come on top of this.
PAGE_BYTES: Final = 2 * 1024 * 1024
FETCHES: Final = 3
SNAPSHOT_LIMIT_BYTES: Final = 256 * 1024 * 1024


class Ask(Protocol):
    """A command to consensus. Raises what it answers, and DeadlineExceeded or PeerRestarted when it does not."""

    async def __call__(self, request: Request[Reply], *, timeout_s: float) -> Reply: ...


class CatchUp:
    """`ledger` is None while the store is locked. Whoever changes the log's end here holds `lock`."""

    def __init__(
        self,
        cluster: str,
        copy: LocalCopy,
        ask: Ask,
        on_commit: Callable[[Sequence[Folded]], None],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._cluster = cluster
        self.copy = copy
        self._ask = ask
        self._on_commit = on_commit
        self._log = log
        self.ledger: Ledger | None = None
        self.lock = asyncio.Lock()
        self.problem = ""  # why what the cluster gave last was not applied
        self.at_head = False  # as of the last time that the head was asked for
        self.forked = False  # what the cluster has at a rev that is here is another entry, or nothing
        self.beyond = 0  # how many revs are here behind the cluster's last one

    @property
    def end(self) -> Chain:
        return self.ledger.chain if self.ledger is not None else self.copy.chain

    async def to_head(self) -> Head:
        """The head as of now, and this node has it. Raises StoreUnavailable and others when consensus does not answer,
        StoreCorrupt for what cannot be believed, StoreFull or StoreUnavailable when the disk takes nothing."""
        async with self.lock:
            self.at_head = False
            head = await self._ask(GetHead(), timeout_s=ASK_S)
            try:
                self.forked, self.beyond = False, 0
                await self._follow(head)
            except Broken as broken:
                said = f"what the cluster gave after rev {self.end.rev} is not applied: {broken.what}"
                if said != self.problem:
                    self._log.error("refused what the cluster gave", rev=broken.rev, reason=broken.what)
                self.problem = said
                raise StoreCorrupt(said, hint="the last good rev stays; it is fetched again each second") from None
            self.problem = ""
            self.at_head = True
            return head

    async def to_hint(self, rev: int) -> None:
        """The leader announced `rev`: takes what comes next without asking for the head first. Raises as `to_head`."""
        async with self.lock:
            if rev <= self.end.rev:
                return
            try:
                await self._take_page()
            except Broken:
                return  # whether that is a fault, the next look at the head tells

    async def take(self, entries: Sequence[Sealed]) -> None:
        """Entries from wherever: those that follow the end here without a break. Raises as `to_head` for the disk."""
        async with self.lock:
            await self._take(entries)

    async def _take(self, entries: Sequence[Sealed]) -> Broken | None:
        """What is wrong with the first that was not taken."""
        key = self.ledger.key if self.ledger is not None else None
        items, broken = await asyncio.to_thread(verified, self.end.fork(), key, entries)
        if items:
            await self.copy.append(items)
            if self.ledger is not None:
                self._on_commit(self.ledger.fold(items))
        return broken

    async def _follow(self, head: Head) -> None:
        if head.rev < self.end.rev:
            # A cluster whose log is empty has lost it: a copy is then worth more than that.
            self.forked, self.beyond = head.rev > 0, self.end.rev - head.rev
            raise Broken(head.rev, f"its log ends at rev {head.rev}, and this node has rev {self.end.rev}")
        fetches, anew = 0, False
        while self.end.rev < head.rev:
            before = self.end.rev
            try:
                await self._take_page(anew=anew)
                anew = False
            except Broken:
                anew = True
                fetches = fetches + 1 if self.end.rev == before else 0
                if fetches >= FETCHES:
                    raise
        if self.end.rev == head.rev > 0 and self.end.digest != head.digest:
            self.forked = True
            raise Broken(head.rev, f"its rev {head.rev} is another one than this node's")

    async def _take_page(self, *, anew: bool = False) -> None:
        after = self.end.rev
        wanted = GetEntries(after=after, limit=PAGE_ENTRIES, limit_bytes=PAGE_BYTES, anew=anew)
        page = await self._ask(wanted, timeout_s=ASK_S)
        if page.first_rev == 0 or page.first_rev > after + 1:
            await self._take_snapshot()
            return
        if not page.entries:
            raise Broken(after + 1, f"entry {after + 1} is missing")
        broken = await self._take([as_sealed(entry) for entry in page.entries])
        if broken is not None:
            self.forked = broken.rev == after + 1 and isinstance(broken, Orphan)
            raise broken

    async def _take_snapshot(self) -> None:
        info = await self._ask(GetSnapshot(), timeout_s=ASK_S)
        rev = self.end.rev
        if info.rev <= rev:
            raise Broken(rev + 1, f"entry {rev + 1} is kept no more, and no snapshot stands for it")
        if info.size_bytes > SNAPSHOT_LIMIT_BYTES:
            raise Broken(info.rev, f"snapshot {info.rev} has {info.size_bytes} bytes")
        parts = []
        try:
            for index in range(info.chunks):
                parts.append((await self._ask(GetSnapshotChunk(rev=info.rev, index=index), timeout_s=ASK_S)).data)
        except NotFound:
            raise Broken(info.rev, f"snapshot {info.rev} gave way to a newer one") from None
        key = self.ledger.key if self.ledger is not None else None
        sealed, header, state = await asyncio.to_thread(_opened, b"".join(parts), self._cluster, key)
        end = self.end
        if header.rev != info.rev or header.rev <= end.rev or (header.gen, header.epoch) < (end.gen, end.epoch):
            raise Broken(header.rev, f"snapshot {info.rev} is of another rev or of an older term")
        await self.copy.install(sealed, header)
        self._log.info("took a snapshot of the cluster", rev=header.rev, before=rev)
        if self.ledger is not None and state is not None:
            self._on_commit(self.ledger.stand_on(header, state))


def as_sealed(entry: SealedEntry) -> Sealed:
    return Sealed(entry.rev, entry.header, entry.nonce, entry.sealed, entry.digest)


def on_the_wire(entry: Sealed) -> SealedEntry:
    return SealedEntry(entry.rev, entry.header, entry.nonce, entry.sealed, entry.digest)


def verified(end: Chain, key: SecretKey | None, entries: Sequence[Sealed]) -> tuple[list[Item], Broken | None]:
    """Those that follow `end` without a break, and the first thing that is wrong after them. Moves `end`.

    Without the key their operations stay sealed, and so are empty here.
    """
    items: list[Item] = []
    for entry in entries:
        here = end.fork()
        try:
            header = here.accept(entry)
            ops = tuple(open_entry(key.cipher, entry)) if key is not None else ()
        except Broken as broken:
            return items, broken
        except CannotOpen:
            return items, Broken(entry.rev, f"entry {entry.rev} was not sealed with this cluster's key")
        end.advance(header, entry.digest)
        items.append(Item(header, entry, ops))
    return items, None


def _opened(data: bytes, cluster: str, key: SecretKey | None) -> tuple[Sealed, SnapshotHeader, State | None]:
    try:
        sealed = as_sealed(msgspec.msgpack.decode(data, type=SealedEntry))
    except msgspec.MsgspecError:
        raise Broken(0, "its snapshot cannot be read") from None
    header = check_snapshot(sealed, cluster)
    if key is None:
        return sealed, header, None
    try:
        return sealed, header, State.from_image(header.rev, header.of, open_bytes(key.cipher, sealed))
    except (CannotOpen, msgspec.MsgspecError):
        raise Broken(header.rev, f"snapshot {header.rev} was not sealed with this cluster's key") from None

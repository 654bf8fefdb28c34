"""The sealed log in etcd: appended to under the token of the kernel's term, read by every node, understood by none of this.

ctl/log/<rev>   one sealed entry          ctl/head   {rev, digest, gen}, in the transaction of its entry
ctl/snap        the newest whole snapshot ctl/snap/<rev>/<index>   its bytes          keyset   the keyset's text
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from piccolod.errors import Conflict, Invalid, NotFound, StoreFull, TooLarge
from piccolod.leadership import keys
from piccolod.leadership.keys import EpochRecord
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.transactions import Compare, Field, Put
from piccolod.leadership.view import Record
from piccolod.protocol import log
from piccolod.protocol.log import APPEND_BYTES, APPEND_ENTRIES, CHUNK_BYTES, SealedEntry
from services.consensus import wire
from services.consensus.cluster_records import LOG, SNAPSHOT, HeadRecord, SnapshotRecord, chunk_key, log_key
from services.consensus.etcd.transaction import Found, KeyValue, Range, Result
from services.consensus.etcd_leaser import EtcdLeaser
from services.consensus.etcd_store import header_of
from services.consensus.log_space import Space
from services.consensus.refusals import restored

_READ_S: Final = 2.0
# Entries have up to 384 KiB, and one answer of etcd at most 64 MiB.
_FIRST_PAGE: Final = 16
_LARGEST_PAGE: Final = 128
_encoder: Final = msgspec.msgpack.Encoder()


class ControlLog:
    def __init__(self, leaser: EtcdLeaser, space: Space) -> None:
        self._leaser = leaser
        self._driver = leaser.driver
        self._space = space
        self._head: Record[HeadRecord] | None = None  # as this node wrote it: the watch tells it later
        self._upload = _Upload(0, 0, 0, 0)

    # --- entries

    async def append(self, request: log.Append) -> None:
        entries = request.entries
        encoded = [_encoder.encode(entry) for entry in entries]
        _check_run(request.head_rev, entries, sum(len(each) for each in encoded))
        if why := self._space.full():
            raise StoreFull(why, hint="a snapshot lets the log be trimmed; it is taken by itself")
        seen = await self._head_at(request.head_rev, request.head_digest)
        head = HeadRecord(entries[-1].rev, entries[-1].digest, self._driver.state.gen)
        puts = tuple(Put(log_key(entry.rev), value) for entry, value in zip(entries, encoded, strict=True))
        revision = await self._leaser.propose(
            request.token, (Compare(keys.KERNEL_HEAD, Field.MOD, seen),), (*puts, Put(keys.KERNEL_HEAD, head))
        )
        self._head = Record(head, 0, revision)
        self._space.wrote(sum(len(each) for each in encoded))

    async def _head_at(self, rev: int, digest: bytes) -> int:
        """The mod revision of the head that the caller saw. Raises Conflict when etcd has another one."""
        known = (self._head, self._driver.facts.head)
        newest = max((each for each in known if each is not None), key=lambda each: each.mod, default=None)
        if newest is not None and _is(newest.value, rev, digest):
            return newest.mod
        result = await self.look(Range(self._key(keys.KERNEL_HEAD)))
        items = _items(result, 0)
        head = _value(result, 0, keys.KERNEL_HEAD, HeadRecord)
        if not _is(head, rev, digest):
            raise Conflict(f"the head is at rev {head.rev if head is not None else 0}", hint="read it again")
        mod = items[0].mod_revision if items else 0
        self._head = Record(head, 0, mod) if head is not None else None
        return mod

    async def head(self) -> log.Head:
        result = await self.look(
            Range(self._key(keys.KERNEL_HEAD)), Range(self._key(keys.EPOCH + RESOURCE_KERNEL)),
            Range(self._key(keys.SESSION), prefix=True),
        )  # fmt: skip
        head = _value(result, 0, keys.KERNEL_HEAD, HeadRecord)
        epoch = _value(result, 1, keys.EPOCH, EpochRecord)
        lives = epoch is not None and epoch.held and self._lives(result, epoch)
        token = _items(result, 1)[0].mod_revision if lives else 0
        return log.Head(rev=head.rev if head else 0, digest=head.digest if head else b"", token=token)

    def _lives(self, result: Result, epoch: EpochRecord) -> bool:
        key = self._key(keys.SESSION + epoch.node)
        return any(item.key == key and item.create_revision == epoch.sid for item in _items(result, 2))

    async def entries(self, request: log.GetEntries) -> log.Entries:
        limit, left_bytes = max(1, request.limit), max(1, request.limit_bytes)
        if not request.anew and not self._driver.state.restored:
            recent = self._driver.facts.entries.after(request.after, limit, left_bytes)
            if recent:
                return log.Entries(entries=recent, first_rev=recent[0].rev)
        found: list[SealedEntry] = []
        after, page, first_rev = request.after, min(limit, _FIRST_PAGE), 0
        while len(found) < limit and left_bytes > 0:
            result = await self.look(
                Range(self._key(LOG), prefix=True, limit=1, keys_only=True),
                Range(self._key(LOG), prefix=True, limit=page, after=self._key(log_key(after))),
            )  # fmt: skip
            first_rev = _rev(_items(result, 0))
            items = _items(result, 1)
            for item in items:
                left_bytes -= len(item.value)
                if found and left_bytes < 0:
                    break
                found.append(wire.entry(item.key, item.value))
                after = found[-1].rev
            if len(items) < page:
                break
            mean_bytes = sum(len(item.value) for item in items) // len(items) + 1
            page = max(1, min(limit - len(found), _LARGEST_PAGE, left_bytes // mean_bytes))
        return log.Entries(entries=tuple(found), first_rev=first_rev)

    # --- snapshots

    async def snapshot(self) -> log.SnapshotInfo:
        found = _value(await self.look(Range(self._key(SNAPSHOT))), 0, SNAPSHOT, SnapshotRecord)
        if found is None:
            return log.SnapshotInfo(rev=0, chunks=0, size_bytes=0)
        return log.SnapshotInfo(rev=found.rev, chunks=found.chunks, size_bytes=found.size_bytes)

    async def snapshot_chunk(self, request: log.GetSnapshotChunk) -> log.Chunk:
        items = _items(await self.look(Range(self._key(chunk_key(request.rev, request.index)))), 0)
        if not items:
            raise NotFound(f"there is no chunk {request.index} of a snapshot at rev {request.rev}", hint="ask for the newest")
        return log.Chunk(items[0].value)

    async def put_snapshot(self, request: log.PutSnapshot) -> bool:
        """Whether the snapshot is whole with this chunk. Also taken while appends are refused: it is what makes room."""
        upload = self._upload if request.index else _Upload(request.token, request.rev, 0, 0)
        if not 0 < len(request.data) <= CHUNK_BYTES or not 0 <= request.index < request.chunks:
            raise Invalid(f"a chunk has 1 to {CHUNK_BYTES} bytes and an index below {request.chunks}")
        if (upload.token, upload.rev, upload.next) != (request.token, request.rev, request.index):
            raise Conflict(f"chunk {request.index} does not follow here", hint="begin again with chunk 0")
        if request.index == 0:
            await self._check_newer(request.rev)
        puts = [Put(chunk_key(request.rev, request.index), request.data)]
        size_bytes, last = upload.size_bytes + len(request.data), request.index + 1 == request.chunks
        if last:
            puts.append(Put(SNAPSHOT, SnapshotRecord(request.rev, request.chunks, size_bytes)))
        await self._leaser.propose(request.token, (), tuple(puts))
        self._upload = _Upload(request.token, request.rev, request.index + 1, size_bytes)
        return last

    async def _check_newer(self, rev: int) -> None:
        """The one that is there is never written over: it may be read right now."""
        result = await self.look(Range(self._key(SNAPSHOT)), Range(self._key(keys.KERNEL_HEAD)))
        found, head = _value(result, 0, SNAPSHOT, SnapshotRecord), _value(result, 1, keys.KERNEL_HEAD, HeadRecord)
        if found is not None and found.rev >= rev:
            raise Conflict(f"there is a snapshot at rev {found.rev} already")
        if head is None or head.rev < rev:
            raise Invalid(f"a snapshot at rev {rev} is ahead of the log")

    # --- the keyset

    async def keyset(self) -> log.Keyset:
        items = _items(await self.look(Range(self._key(keys.KEYSET))), 0)
        return log.Keyset(keyset=items[0].value if items else b"", mod=items[0].mod_revision if items else 0)

    async def put_keyset(self, request: log.PutKeyset) -> None:
        compare = Compare(keys.KEYSET, Field.MOD, request.seen_mod)
        await self._leaser.propose(request.token, (compare,), (Put(keys.KEYSET, request.keyset),))

    # --- inside

    async def look(self, *wanted: Range) -> Result:
        """As of now. Raises StoreRestored for an answer of another etcd, or of one that went back: none of it is believed."""
        driver = self._driver
        least = driver.state.highest
        result = None if driver.state.restored else await driver.store.client.look(wanted, _READ_S)
        if result is None or not driver.believes(header_of(result), least):
            raise restored(driver)
        return result

    def _key(self, key: str) -> str:
        return self._driver.store.prefix + key


class _Upload(msgspec.Struct, frozen=True):
    """A snapshot on its way into etcd: the chunk that comes next, and the bytes before it."""

    token: int
    rev: int
    next: int
    size_bytes: int


def _check_run(head_rev: int, entries: Sequence[SealedEntry], size_bytes: int) -> None:
    if not entries or len(entries) > APPEND_ENTRIES:
        raise Invalid(f"an append has 1 to {APPEND_ENTRIES} entries, not {len(entries)}")
    if size_bytes > APPEND_BYTES:
        raise TooLarge(f"an append has at most {APPEND_BYTES} bytes, not {size_bytes}")
    if [entry.rev for entry in entries] != list(range(head_rev + 1, head_rev + 1 + len(entries))):
        raise Invalid(f"the entries do not follow rev {head_rev}")


def _is(head: HeadRecord | None, rev: int, digest: bytes) -> bool:
    """Whether this is the head that was seen; before the first entry there is none, whatever the digest says."""
    return rev == 0 if head is None else (head.rev, head.digest) == (rev, digest)


def _items(result: Result, index: int) -> tuple[KeyValue, ...]:
    answer = result.answers[index]
    return answer.keys if isinstance(answer, Found) else ()


def _value(result: Result, index: int, kind: str, struct: type[Any]) -> Any:
    items = _items(result, index)
    value = wire.decode(kind, items[0].value) if items else None
    return value if isinstance(value, struct) else None


def _rev(items: Sequence[KeyValue]) -> int:
    return int(items[0].key.rpartition("/")[2]) if items else 0

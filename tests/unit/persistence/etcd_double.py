"""A consensus that speaks the commands of piccolod/protocol/log.py and keeps a real log in memory, with etcd's semantics.

One `Etcd` is the cluster's store: every change has a revision, an append compares the token, the session and the head, and
all of it happens or nothing. One `Consensus` a node asks it, and may lose, delay, double or spoil what goes between.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from piccolod.errors import (
    Conflict,
    LeaderHint,
    NotFound,
    NotLeader,
    OutcomeUnknown,
    PiccoloError,
    StoreFull,
    StoreUnavailable,
    TermOver,
)
from piccolod.leadership.gate import Shut, Token
from piccolod.protocol.base import Nothing
from piccolod.protocol.log import (
    Append,
    Chunk,
    Entries,
    GetEntries,
    GetHead,
    GetKeyset,
    GetSnapshot,
    GetSnapshotChunk,
    Head,
    Keyset,
    PutKeyset,
    PutSnapshot,
    SealedEntry,
    SnapshotInfo,
)

GEN = 7


class Etcd:
    """The truth. `full` and `down` are what the server says then."""

    def __init__(self) -> None:
        self.revision = 1
        self.log: dict[int, SealedEntry] = {}
        self.head_rev, self.head_digest = 0, b""
        self.token, self.epoch, self.leader = 0, 0, ""
        self.ended: set[int] = set()  # tokens whose session is over
        self.snapshot: tuple[int, list[bytes]] = (0, [])
        self.uploading: list[bytes] = []
        self.keyset, self.keyset_mod = b"", 0
        self.full = False
        self.down = False
        self.appends = 0

    def elect(self, node: str) -> Token:
        self.revision += 1
        self.epoch += 1
        self.token, self.leader = self.revision, node
        return Token(GEN, self.epoch, self.token)

    def held(self) -> int:
        return 0 if self.token in self.ended else self.token

    def release(self) -> None:
        self.revision += 1
        self.token, self.leader = 0, ""

    def append(self, request: Append) -> Nothing:
        if self.full:
            raise StoreFull("etcd's space quota is half used up", hint="snapshots go on")
        self._check_token(request.token)
        if request.head_rev != self.head_rev or (self.head_rev and request.head_digest != self.head_digest):
            raise Conflict("the head is another one")
        assert [entry.rev for entry in request.entries] == list(
            range(self.head_rev + 1, self.head_rev + 1 + len(request.entries))
        )
        self.revision += 1
        self.appends += 1
        for entry in request.entries:
            self.log[entry.rev] = entry
        self.head_rev, self.head_digest = request.entries[-1].rev, request.entries[-1].digest
        return Nothing()

    def put_keyset(self, request: PutKeyset) -> Nothing:
        self._check_token(request.token)
        if request.seen_mod != self.keyset_mod:
            raise Conflict("another keyset is there")
        self.revision += 1
        self.keyset, self.keyset_mod = request.keyset, self.revision
        return Nothing()

    def put_snapshot(self, request: PutSnapshot) -> Nothing:
        self._check_token(request.token)
        if request.index == 0:
            self.uploading = []
        assert request.index == len(self.uploading)
        self.uploading.append(request.data)
        if request.index == request.chunks - 1:
            self.snapshot = (request.rev, self.uploading)
            for rev in [rev for rev in self.log if rev <= request.rev]:
                del self.log[rev]
        return Nothing()

    def entries(self, request: GetEntries) -> Entries:
        taken: list[SealedEntry] = []
        size = 0
        for rev in range(request.after + 1, self.head_rev + 1):
            if rev not in self.log or len(taken) == request.limit or (taken and size >= request.limit_bytes):
                break
            taken.append(self.log[rev])
            size += len(self.log[rev].sealed)
        return Entries(entries=tuple(taken), first_rev=min(self.log, default=0))

    def _check_token(self, token: int) -> None:
        if self.token != token or token in self.ended:
            raise NotLeader("the term is over", leader=self.hint())

    def hint(self) -> LeaderHint | None:
        return (
            LeaderHint(self.leader, f"{self.leader}.test", f"https://{self.leader}.test", self.epoch) if self.leader else None
        )


class Consensus:
    """What one node asks. `unknown` holds what happens to the next appends: "made", "lost", or "late" with `arrive`
    later, and "late, cut off"."""

    def __init__(self, etcd: Etcd, node: str) -> None:
        self.etcd = etcd
        self.node = node
        self.asked: list[Any] = []
        self.unknown: deque[str] = deque()
        self.late: list[Callable[[], Any]] = []
        self.spoil: Callable[[Entries], Entries] = lambda entries: entries
        self.cut_off = False
        self.slow: asyncio.Event | None = None  # appends wait for it before they are sent

    async def ask(self, request: Any, *, timeout_s: float) -> Any:
        self.asked.append(request)
        await asyncio.sleep(0)
        if self.cut_off or self.etcd.down:
            raise StoreUnavailable("etcd has no quorum")
        match request:
            case GetHead():
                etcd = self.etcd
                return Head(rev=etcd.head_rev, digest=etcd.head_digest, token=etcd.held())
            case Append() | PutKeyset():
                return await self._write(request)
            case GetEntries():
                return self.spoil(self.etcd.entries(request))
            case GetSnapshot():
                rev, chunks = self.etcd.snapshot
                return SnapshotInfo(rev=rev, chunks=len(chunks), size_bytes=sum(map(len, chunks)))
            case GetSnapshotChunk():
                rev, chunks = self.etcd.snapshot
                if rev != request.rev:
                    raise NotFound("a newer snapshot has taken its place")
                return Chunk(chunks[request.index])
            case PutSnapshot():
                return self.etcd.put_snapshot(request)
            case GetKeyset():
                return Keyset(keyset=self.etcd.keyset, mod=self.etcd.keyset_mod)
        raise AssertionError(request)

    async def _write(self, request: Append | PutKeyset) -> Any:
        do = (lambda: self.etcd.append(request)) if isinstance(request, Append) else (lambda: self.etcd.put_keyset(request))
        if self.slow is not None:
            await self.slow.wait()
        fate = self.unknown.popleft() if self.unknown else ""
        if fate == "made":
            do()
        elif fate.startswith("late"):
            self.late.append(do)
            self.cut_off = fate != "late"
        if fate:
            raise OutcomeUnknown("etcd did not answer in time")
        return do()

    def arrive(self) -> None:
        """What was late comes to etcd now, which takes it or not."""
        for do in self.late:
            try:
                do()
            except PiccoloError:
                pass
        self.late.clear()


class NodeGate:
    """The page of one node: open while its term is the one on it. It is not told when etcd gives the token away."""

    def __init__(self) -> None:
        self.token: Token | None = None
        self.closing = False

    def check(self, resource: str) -> Token:
        assert resource == "kernel"
        if self.token is None:
            raise TermOver(resource, Shut.NOT_LED)
        if self.closing:
            raise TermOver(resource, Shut.CLOSING)
        return self.token

    def still(self, resource: str, token: Token) -> None:
        if self.check(resource) != token:
            raise TermOver(resource, Shut.OTHER_TERM)

    def holds(self, resource: str) -> bool:
        return self.token is not None and not self.closing


def flipped(entry: SealedEntry, field: str = "sealed") -> SealedEntry:
    content = bytearray(getattr(entry, field))
    content[len(content) // 2] ^= 1
    return msgspec.structs.replace(entry, **{field: bytes(content)})

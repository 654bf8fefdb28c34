"""Keeps the log in etcd short: the leader puts a snapshot there when that is due, and consensus trims the log behind it."""

from __future__ import annotations

from typing import Final

import msgspec
import structlog

from piccolod import clock
from piccolod.errors import PiccoloError, TermOver
from piccolod.leadership.gate import Token
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.protocol.log import CHUNK_BYTES, GetSnapshot, PutSnapshot
from services.persistence.catch_up import ASK_S, Ask, CatchUp, on_the_wire
from services.persistence.commit_point import Gatekeeper

REVS: Final = 1000
BYTES: Final = 8 * 1024 * 1024
CHUNK_S: Final = 5.0


def is_due(revs: int, size_bytes: int, full: bool) -> bool:
    """`full`: etcd takes no appends, and every trimmed byte may change that. Pure."""
    return revs >= REVS or (revs > 0 and (size_bytes >= BYTES or full))


class EtcdSnapshot:
    def __init__(self, catch_up: CatchUp, ask: Ask, gate: Gatekeeper, log: structlog.typing.FilteringBoundLogger) -> None:
        self._catch_up = catch_up
        self._ask = ask
        self._gate = gate
        self._log = log
        self._full = False
        self._term: Token | None = None  # in which `_rev` was read
        self._rev = 0
        self._counted = 0  # up to this rev `_bytes` were counted
        self._bytes = 0

    def say_full(self) -> None:
        self._full = True

    async def put_when_due(self) -> None:
        """For the leader, each second. What fails is tried again the next time."""
        ledger = self._catch_up.ledger
        if ledger is None:
            return
        try:
            token = self._gate.check(RESOURCE_KERNEL)
            await self._count(token)
            if is_due(ledger.state.rev - self._rev, self._bytes, self._full):
                await self._put(token)
                self._full = False
        except TermOver:
            return
        except PiccoloError as error:
            self._term = None
            self._log.warning("could not put a snapshot into etcd", reason=error.detail)

    async def _count(self, token: Token) -> None:
        if self._term != token:
            self._rev = self._counted = (await self._ask(GetSnapshot(), timeout_s=ASK_S)).rev
            self._bytes, self._term = 0, token
        if self._counted < self._catch_up.copy.chain.rev:
            added, self._counted = await self._catch_up.copy.size_after(self._counted)
            self._bytes += added

    async def _put(self, token: Token) -> None:
        ledger = self._catch_up.ledger
        assert ledger is not None
        sealed = ledger.snapshot(clock.wall_ms())
        data = msgspec.msgpack.encode(on_the_wire(sealed))
        starts = range(0, len(data), CHUNK_BYTES)
        for index, at in enumerate(starts):
            chunk = data[at : at + CHUNK_BYTES]
            request = PutSnapshot(token=token.token, rev=sealed.rev, index=index, chunks=len(starts), data=chunk)
            await self._ask(request, timeout_s=CHUNK_S)
        self._log.info("put a snapshot into etcd", rev=sealed.rev, size_bytes=len(data), revs=sealed.rev - self._rev)
        self._rev = self._counted = sealed.rev
        self._bytes = 0

"""Speaks to etcd: one channel an endpoint, a deadline on every call, every answer checked before it is believed.

A write is sent at most once, and only into a channel that is connected: what fails before that was surely not done, and
what fails after it is unknown unless etcd itself says that it refused. Reads go on to the next endpoint until their deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import grpc
from msgspec import Struct

from piccolod import clock
from piccolod.errors import StoreUnavailable
from services.consensus.etcd.channel import Channel, Tls
from services.consensus.etcd.endpoints import Endpoints
from services.consensus.etcd.failures import TransactionUnknown, Verdict, judge
from services.consensus.etcd.header import Header, Lineage
from services.consensus.etcd.stubs import RANGE, TXN, Method
from services.consensus.etcd.transaction import Found, KeyValue, Range, Result, Transaction

_PAUSE_S: Final = 0.02
_PAGE: Final = 1000


class Answered(Struct, frozen=True):
    """A checked answer. `sent_at`: when the request that it answers was sent."""

    message: Any
    header: Header
    sent_at: float


class Client:
    """Of one etcd cluster, for one event loop. Raises StoreUnavailable, StoreRestored and what failures.py names."""

    def __init__(self, endpoints: Sequence[str], tls: Tls | None, *, rpc_s: float, lineage: Lineage | None = None) -> None:
        """`endpoints`: ADDRESS:PORT, the local one first. `rpc_s`: `tau`, how long one endpoint may keep silent."""
        self._endpoints = Endpoints(tuple(endpoints))
        self._tls = tls
        self.rpc_s: Final = rpc_s
        self.lineage = lineage or Lineage()
        self._channels: dict[str, Channel] = {}
        self._closing: set[asyncio.Task[None]] = set()

    # --- what etcd is asked

    async def transact(self, transaction: Transaction, within_s: float | None = None) -> Result:
        """Raises TransactionUnknown when it may have happened or may happen yet; any other error means that it did not.

        `within_s` None: `rpc_s`. Longer is waited longer for its one answer.
        """
        within_s = self.rpc_s if within_s is None else within_s
        answered = await self._call(TXN, transaction.to_wire(), within_s, again=False, proves=True)
        return Result.of(answered.message, answered.sent_at)

    async def find(self, wanted: Range, within_s: float) -> tuple[Found, int]:
        """What is there, and the revision at which it was looked at."""
        current = not wanted.serializable  # else also from a member that sees no leader
        answered = await self._call(RANGE, wanted.request(), within_s, again=True, proves=current, leader=current)
        return Found.of(answered.message), wanted.revision or answered.header.revision

    async def look(self, wanted: Sequence[Range], within_s: float) -> Result:
        """Several ranges as of one revision, the newest."""
        question = Transaction((), tuple(wanted)).to_wire()
        answered = await self._call(TXN, question, within_s, again=True, proves=True)
        return Result.of(answered.message, answered.sent_at)

    async def list(self, prefix: str, within_s: float) -> tuple[list[KeyValue], int]:
        """All below a prefix as of one revision, read in pages. A watch goes on from the revision after it."""
        give_up_at = clock.now() + within_s
        found, revision = await self.find(Range(prefix, prefix=True, limit=_PAGE), within_s)
        keys = list(found.keys)
        while found.more:
            page = Range(prefix, prefix=True, limit=_PAGE, revision=revision, after=keys[-1].key)
            found, _ = await self.find(page, give_up_at - clock.now())
            keys += found.keys
        return keys, revision

    # --- calls

    async def write(self, method: Method, request: Any, within_s: float) -> Answered:
        """Sent at most once. Not of keys, so the revision in its answer proves nothing."""
        return await self._call(method, request, within_s, again=False, proves=False)

    async def read(self, method: Method, request: Any, within_s: float) -> Answered:
        """Sent to one endpoint after the other until one answers. Not of keys either."""
        return await self._call(method, request, within_s, again=True, proves=False)

    async def ask(self, endpoint: str, method: Method, request: Any, within_s: float) -> Any:
        """One endpoint and no other, also one that sees no leader; what other calls think of it stays."""
        channel = self.channel(endpoint)
        give_up_at = clock.now() + within_s
        if not await channel.ready(within_s):
            raise StoreUnavailable(self._unreachable(endpoint), hint="see `piccoloctl modules list` on its node")
        try:
            return await channel.ask(method, request, max(0.001, give_up_at - clock.now()), leader=False)
        except grpc.aio.AioRpcError as error:
            raise judge(error.code(), error.details() or "", endpoint).error from None

    async def _call(
        self, method: Method, request: Any, within_s: float, again: bool, proves: bool, leader: bool = True
    ) -> Answered:
        give_up_at = clock.now() + within_s
        why = StoreUnavailable("etcd was not asked: no time was left", hint="see `piccoloctl cluster list`")
        tried: set[str] = set()
        while (left_s := give_up_at - clock.now()) > 0:
            endpoint = self.endpoint()
            if endpoint in tried:  # all have been: they get a moment
                tried.clear()
                await asyncio.sleep(min(_PAUSE_S, left_s))
                continue
            tried.add(endpoint)
            channel = self.channel(endpoint)
            if not await channel.ready(min(left_s, self.rpc_s)):
                self.failed(endpoint)
                why = StoreUnavailable(self._unreachable(endpoint), hint="see `piccoloctl cluster list`")
                continue
            mark, sent_at = self.lineage.mark(), clock.now()
            left_s = max(0.001, give_up_at - sent_at)
            try:
                answer = await channel.ask(method, request, min(left_s, self.rpc_s) if again else left_s, leader)
            except grpc.aio.AioRpcError as error:
                failure = judge(error.code(), error.details() or "", endpoint)
                if failure.verdict is Verdict.REFUSED:
                    self.worked(endpoint)
                    raise failure.error from None
                self.failed(endpoint)
                if failure.verdict is Verdict.UNKNOWN and not again:
                    raise TransactionUnknown(failure.error) from None
                why = failure.error if isinstance(failure.error, StoreUnavailable) else why
                continue
            header = Header.of(answer)
            self.lineage.check(header, mark if proves else None)
            self.worked(endpoint)
            return Answered(answer, header, sent_at)
        raise why

    def _unreachable(self, endpoint: str) -> str:
        """grpc does not tell which of the two it is."""
        return f"etcd at {endpoint} cannot be reached{'' if self._tls is None else ', or one of us refuses the other'}"

    # --- endpoints

    def endpoint(self) -> str:
        """Whom to ask now."""
        return self._endpoints.choose(clock.now())

    def channel(self, endpoint: str) -> Channel:
        if endpoint not in self._channels:
            self._channels[endpoint] = Channel(endpoint, self._tls)
        return self._channels[endpoint]

    def failed(self, endpoint: str) -> None:
        self._endpoints = self._endpoints.failed(endpoint, clock.now())

    def worked(self, endpoint: str) -> None:
        self._endpoints = self._endpoints.worked(endpoint)

    def renew(self, endpoints: Sequence[str], tls: Tls | None) -> None:
        """The members or the certificates have changed. Calls under way end as they may."""
        self._endpoints = self._endpoints.renewed(endpoints)
        gone = [each for each in self._channels if tls != self._tls or each not in endpoints]
        self._tls = tls
        for each in gone:
            task = asyncio.create_task(self._channels.pop(each).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close() for channel in channels), *self._closing)

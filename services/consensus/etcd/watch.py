"""Everything that changes below one prefix, revision by revision, across the loss of endpoints.

A watch is a hint: whoever follows one also polls. It is resumed on the next endpoint, from the last revision that was
delivered, when its stream ends, and when no event has come for `silence_s`: our own heartbeats pass through it. A stream
that merely lives proves nothing, for 3.4 answers a progress request also while events are held back; so none is sent. Nor are
fragments asked for: without them one message holds whole revisions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any, Final

import grpc
from msgspec import Struct

from piccolod import clock
from services.consensus.etcd.client import Client
from services.consensus.etcd.header import Header
from services.consensus.etcd.stubs import WATCH, rpc
from services.consensus.etcd.transaction import Event, prefix_end

_PAUSE_S: Final = 0.02


class Revision(Struct, frozen=True):
    """All that one revision changed below the prefix."""

    revision: int
    events: tuple[Event, ...]


class Relist(Struct, frozen=True):
    """The watch is over: what lies between is not to be had any more. List again and begin a new one after that."""

    reason: str


News = Revision | Relist


class _Broken(Exception):
    """The stream is of no use any more."""


class Watch:
    def __init__(self, client: Client, prefix: str, after: int, silence_s: float) -> None:
        """`after`: the revision that is known already, as of a listing."""
        self._client = client
        self._prefix = prefix.encode()
        self._silence_s = silence_s
        self.revision = after
        self.cluster_id = 0  # of the etcd that spoke last
        self.endpoint = ""
        self.resumed = 0  # how often it went to another stream
        self.reason = ""  # why, the last time

    async def news(self) -> AsyncGenerator[News, None]:
        """Each revision once, in order; a Relist is the last. Raises StoreRestored, nothing else; ends by being closed."""
        while True:
            self.endpoint = self._client.endpoint()
            try:
                async for each in self._stream(self.endpoint):
                    yield each
                    if isinstance(each, Relist):
                        return
            except _Broken as broken:
                self.resumed += 1
                self.reason = str(broken)
                self._client.failed(self.endpoint)
                await asyncio.sleep(_PAUSE_S)

    async def _stream(self, endpoint: str) -> AsyncIterator[News]:
        channel = self._client.channel(endpoint)
        if not await channel.ready(self._client.rpc_s):
            raise _Broken("cannot be reached")
        call = channel.stream(WATCH)
        try:
            async with _bounded(self._client.rpc_s):
                await call.write(self._request())
            silent_at = clock.now() + self._client.rpc_s  # until the watch is confirmed
            while True:
                async with _bounded(silent_at - clock.now()):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    raise _Broken("the stream ended")
                self._client.lineage.check(Header.of(message), None)
                self.cluster_id = message.header.cluster_id
                if message.created:
                    self._client.worked(endpoint)
                    silent_at = clock.now() + self._silence_s
                if (relist := _over(message)) is not None:
                    yield relist
                    return
                for each in self._revisions(message.events):
                    yield each
                    silent_at = clock.now() + self._silence_s  # after the taker, whose time is not etcd's silence
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                yield Relist("what was missed is too large for one message")
            else:
                raise _Broken(error.details() or error.code().name) from None
        finally:
            call.cancel()

    def _request(self) -> Any:
        wanted = rpc.WatchCreateRequest(key=self._prefix, range_end=prefix_end(self._prefix), start_revision=self.revision + 1)
        return rpc.WatchRequest(create_request=wanted)

    def _revisions(self, events: Iterable[Any]) -> Iterable[Revision]:
        """One message holds whole revisions. What was delivered before is left out: 3.4 can go back in time."""
        for revision, group in groupby(events, key=lambda event: event.kv.mod_revision):
            if revision > self.revision:
                self.revision = revision
                yield Revision(revision, tuple(Event.of(event) for event in group))


def _over(message: Any) -> Relist | None:
    """Raises _Broken when another stream could do better."""
    if message.compact_revision:
        return Relist(f"compacted up to revision {message.compact_revision}")
    if message.canceled:
        raise _Broken(message.cancel_reason or "cancelled by etcd")
    return None


@asynccontextmanager
async def _bounded(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            yield
    except TimeoutError:
        raise _Broken("silent") from None

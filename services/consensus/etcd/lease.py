"""The lease that this node's public records hang on: granted once, kept alive on one stream, revoked at the end.

Leases publish and clean up, they prove nothing: an answer to a keepalive passes no quorum.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

import grpc
from msgspec import Struct

from piccolod import clock
from piccolod.errors import StoreUnavailable
from services.consensus.etcd.client import Client
from services.consensus.etcd.failures import LeaseLost
from services.consensus.etcd.header import Header
from services.consensus.etcd.stubs import LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE, rpc

_PAUSE_S: Final = 0.01


class Lease(Struct, frozen=True):
    """`ttl_s` is what etcd granted, which may be more than was asked for. `sent_at`: when it was asked for."""

    id: int
    ttl_s: int
    sent_at: float


class Renewal(Struct, frozen=True):
    ttl_s: int
    sent_at: float


async def grant(client: Client, ttl_s: int) -> Lease:
    """After an unknown outcome a lease that nobody knows may be left: it expires."""
    answered = await client.write(LEASE_GRANT, rpc.LeaseGrantRequest(TTL=ttl_s), client.rpc_s)
    return Lease(answered.message.ID, answered.message.TTL, answered.sent_at)


async def revoke(client: Client, lease_id: int) -> None:
    """Deletes what hangs on it. One that has ended already is no error."""
    with suppress(LeaseLost):
        await client.write(LEASE_REVOKE, rpc.LeaseRevokeRequest(ID=lease_id), client.rpc_s)


class KeepAlive:
    """Of one lease; a second renewal waits for the first."""

    def __init__(self, client: Client, lease_id: int) -> None:
        self._client = client
        self._lease_id = lease_id
        self._call: Any = None
        self._endpoint = ""
        self._turn = asyncio.Lock()

    async def renew(self, within_s: float) -> Renewal:
        """Raises LeaseLost when etcd says that it has ended; StoreUnavailable when nobody answers in time."""
        give_up_at = clock.now() + within_s
        async with self._turn:
            why = "no time was left"
            while (left_s := give_up_at - clock.now()) > 0:
                try:
                    async with asyncio.timeout(min(left_s, self._client.rpc_s)):
                        return await self._renew()
                except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError, EOFError) as error:
                    why = f"{self._endpoint}: {_text(error)}"
                    self._drop()
                    self._client.failed(self._endpoint)
                    await asyncio.sleep(_PAUSE_S)
                except asyncio.CancelledError:
                    self._drop()  # the answer that is on its way must not be taken for that of the next renewal
                    raise
            raise StoreUnavailable(f"the lease was not renewed: {why}", hint="see `piccoloctl cluster list`")

    def close(self) -> None:
        """The lease lives on until it expires."""
        self._drop()

    async def _renew(self) -> Renewal:
        if self._call is None:
            self._endpoint = self._client.endpoint()
            channel = self._client.channel(self._endpoint)
            if not await channel.ready(self._client.rpc_s):
                raise EOFError
            self._call = channel.stream(LEASE_KEEP_ALIVE)
        sent_at = clock.now()
        await self._call.write(rpc.LeaseKeepAliveRequest(ID=self._lease_id))
        answer = await self._call.read()
        if answer is grpc.aio.EOF:
            raise EOFError
        self._client.lineage.check(Header.of(answer), None)
        self._client.worked(self._endpoint)
        if answer.TTL <= 0:
            raise LeaseLost("the lease has ended", hint="a new one is granted")
        return Renewal(answer.TTL, sent_at)

    def _drop(self) -> None:
        if self._call is not None:
            self._call.cancel()
        self._call = None


def _text(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return str(error.details() or error.code().name)
    return "no answer" if isinstance(error, TimeoutError) else "the stream ended" if isinstance(error, EOFError) else str(error)

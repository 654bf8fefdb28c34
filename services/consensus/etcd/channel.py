"""One connection to one endpoint. It knows grpc, and nothing of etcd but that a call must say `hasleader`.

Without that an isolated member keeps a caller waiting for 7 s and a watch for ever (measured, 3.4.23). HTTP/2 keepalives are
off: etcd answers them with GOAWAY (measured). Deadlines do their work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc
from grpc import ChannelConnectivity as State
from msgspec import Struct

from piccolod.errors import StoreUnavailable
from services.consensus.etcd.stubs import Method

HAS_LEADER: Final = (("hasleader", "true"),)
# A watch that catches up gets up to 1000 revisions in one message.
MESSAGE_BYTES: Final = 64 << 20
_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),  # how long one attempt may take
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
)


class Tls(Struct, frozen=True):
    """PEM. The certificate of this node proves it to etcd; the CA proves etcd to it."""

    ca: bytes
    cert: bytes
    key: bytes

    @classmethod
    def read(cls, files: Iterable[Path], hint: str = "see the disk") -> Tls:
        """Of the three files in this order. Raises StoreUnavailable."""
        try:
            return cls(*(file.read_bytes() for file in files))
        except OSError as error:
            raise StoreUnavailable(f"cannot read {error.filename}: {error.strerror}", hint=hint) from error


class Channel:
    def __init__(self, endpoint: str, tls: Tls | None) -> None:
        """`endpoint` is ADDRESS:PORT. Without `tls` in the clear: for tests."""
        self.endpoint = endpoint
        if tls is None:
            self._channel = grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.cert)
            self._channel = grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)
        self._calls: dict[str, Any] = {}
        self._waiter: asyncio.Task[None] | None = None

    async def ready(self, within_s: float) -> bool:
        """Whether it is connected, at once when it is. What is sent otherwise may or may not have been sent."""
        if self._state() is State.READY:
            return True
        if self._waiter is None or self._waiter.done():
            self._waiter = asyncio.create_task(self._connect())
        await asyncio.wait((self._waiter,), timeout=within_s)
        return self._state() is State.READY

    async def ask(self, method: Method, request: Any, within_s: float, leader: bool = True) -> Any:
        """One request, one answer. `leader` False: also from a member that sees none. Raises grpc.aio.AioRpcError."""
        call = self._calls.get(method.path)
        if call is None:
            call = self._calls[method.path] = self._channel.unary_unary(
                method.path, request_serializer=method.request.SerializeToString, response_deserializer=method.answer.FromString
            )
        return await call(request, timeout=within_s, metadata=HAS_LEADER if leader else ())

    def stream(self, method: Method) -> Any:
        """A stream both ways, without a deadline: its owner bounds each step."""
        call = self._channel.stream_stream(
            method.path, request_serializer=method.request.SerializeToString, response_deserializer=method.answer.FromString
        )
        return call(metadata=HAS_LEADER)

    def download(self, method: Method, request: Any, within_s: float) -> AsyncIterator[Any]:
        call = self._channel.unary_stream(
            method.path, request_serializer=method.request.SerializeToString, response_deserializer=method.answer.FromString
        )
        answers: AsyncIterator[Any] = call(request, timeout=within_s)
        return answers

    async def close(self) -> None:
        if self._waiter is not None:
            self._waiter.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._waiter
        await self._channel.close()

    def _state(self) -> State:
        return self._channel.get_state(try_to_connect=True)

    async def _connect(self) -> None:
        """Until it is connected or an attempt has failed."""
        seen = self._state()
        while seen in (State.IDLE, State.CONNECTING):
            await self._channel.wait_for_state_change(seen)
            seen = self._state()

"""A relay on the test's own loop, with real sockets on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from piccolod import clock
from piccolod.leadership import page as deadline_page
from services.router.flow import Port
from services.router.limits import Limits
from services.router.relay import Relay
from services.router.route import ClientIp, Listener, Mode, Protocol, Target

RESOURCE = "app:notes"
LIMITS = Limits(total=20_000, per_client=20_000)
RESET = struct.pack("ii", 1, 0)


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test on a loop of its own, at most 60 s."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


async def until(condition: Callable[[], object], what: str, within_s: float = 10.0) -> None:
    """Waits for a condition, with a deadline and a message."""
    deadline = clock.now() + within_s
    while not condition():
        assert clock.now() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.002)


def listening(backlog: int = 1024, family: int = socket.AF_INET, number: int = 0) -> socket.socket:
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", number))
    sock.listen(backlog)
    return sock


class Leader:
    """The writer of the page: consensus, as far as the router can tell."""

    def __init__(self, path: Path) -> None:
        deadline_page.create(path)
        self._writer = deadline_page.PageWriter(path)

    def lead(self, token: int = 9, epoch: int = 4, hard_at: float = clock.FOREVER, closing: bool = False) -> None:
        self._write(hard_at, {RESOURCE: deadline_page.Term(token, epoch, closing)})

    def lose(self) -> None:
        self._write(clock.FOREVER, {})

    def _write(self, hard_at: float, terms: dict[str, deadline_page.Term]) -> None:
        self._writer.write(deadline_page.Page(0, 1, 1, 0, clock.boot_id(), hard_at, hard_at, terms))

    def close(self) -> None:
        self._writer.close()


@dataclasses.dataclass
class Bench:
    """A relay with one port. `judge` is the verdict on it; `allow` changes it."""

    relay: Relay
    port: Port
    number: int
    door: socket.socket
    judge: Callable[[Port], Mode]

    def allow(self, mode: Mode) -> None:
        self.port.mode = mode

    async def connect(self, **more: Any) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.number, **more))

    def shut(self) -> None:
        """The next verdict cuts what flows."""

        def judge(_port: Port) -> Mode:
            self.relay.cut(self.port)
            return Mode.HOLD

        self.judge = judge

    async def refuses(self) -> bool:
        """Whether a new connection is reset, at once or a moment later."""
        try:
            client = await self.connect()
        except ConnectionResetError:
            return True
        try:
            return await client.was_reset()
        finally:
            await client.close()


@dataclasses.dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def hears(self, data: bytes) -> None:
        """Sends, and reads the same from an echo; its side stays open."""
        self.writer.write(data)
        assert await asyncio.wait_for(self.reader.readexactly(len(data)), 5) == data

    async def ask(self, data: bytes) -> bytes:
        """Sends, ends its side, reads to the end."""
        self.writer.write(data)
        self.writer.write_eof()
        return await self.rest()

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(-1), 30)

    async def was_reset(self) -> bool:
        try:
            return await self.rest() is None
        except ConnectionResetError:
            return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def abort(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def relaying(
    target: tuple[str, int] | None,
    *,
    mode: Mode = Mode.LOCAL,
    protocol: Protocol = Protocol.RAW,
    client_ip: ClientIp = ClientIp.NONE,
    hold_s: float = 10.0,
    **limits: Any,
) -> AsyncIterator[Bench]:
    relay = Relay(dataclasses.replace(LIMITS, **limits), lambda port: bench.judge(port))
    door = listening()
    number = door.getsockname()[1]
    port = Port("app", Listener(name="web", public_port=number, protocol=protocol, client_ip=client_ip, hold_s=hold_s))
    port.mode = mode
    port.target = target and Target(listener="web", address=target[0], port=target[1])
    relay.open(port, door)
    relay.attach(asyncio.get_running_loop())
    bench = Bench(relay, port, number, door, lambda port: port.mode)
    try:
        yield bench
    finally:
        relay.close()


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def backend(serve: Serve) -> AsyncIterator[tuple[str, int]]:
    """A real server whose connections end with the test."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=2048)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Writes as fast as it is read, without an end."""
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def http_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers every request of a connection with the head that arrived, as a body."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(head) + head)
        await writer.drain()
        if b"connection: close" in head.lower():
            return

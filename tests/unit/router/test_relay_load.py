"""A relay under load: slow readers cost one buffer each, nobody waits for the others, and nothing is left behind."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import socket
import sys
import termios

import pytest

from piccolod import clock
from services.router import legs
from services.router import relay as relay_module

from .harness import Client, backend, echo, flood, http_ok, on_loop, relaying, until


@on_loop
async def test_a_slow_reader_stops_its_sender_and_costs_one_buffer() -> None:
    written = 0

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        block = b"x" * 65536
        while True:
            writer.write(block)
            await writer.drain()
            written += len(block)

    async with backend(flood) as at, relaying(at) as bench:
        clients = [await bench.connect(limit=4096) for _ in range(20)]
        await until_still(lambda: written)
        assert bench.relay.buffered_bytes <= 20 * 128 * 1024
        # What the kernel holds for a flow: at most tcp_wmem + tcp_rmem on both sides of the relay.
        assert written < 20 * 32 * 2**20
        before = written
        await asyncio.wait_for(clients[0].reader.readexactly(30_000_000), 20)
        assert written > before
        for client in clients:
            client.abort()
        await until(lambda: not bench.port.clients, "the flows end")
        assert bench.relay.buffered_bytes == 0


async def until_still(value: object) -> None:
    """Waits until a value has not changed for 300 ms."""
    seen, since = None, clock.now()
    deadline = since + 20
    while clock.now() - since < 0.3:
        assert clock.now() < deadline, "it never rests"
        await asyncio.sleep(0.02)
        if (now := value()) != seen:  # type: ignore[operator]
            seen, since = now, clock.now()


@on_loop
async def test_when_many_are_slow_the_rest_still_flows_in_small_sips() -> None:
    async with backend(flood) as at, relaying(at, buffered_bytes=256 * 1024) as bench:
        clients = [await bench.connect(limit=4096) for _ in range(30)]
        await until(lambda: bench.relay.buffered_bytes >= 256 * 1024, "the buffers fill")
        await until_still(lambda: bench.relay.buffered_bytes)
        assert bench.relay.buffered_bytes <= 256 * 1024 + 128 * 1024 + 30 * 4096
        assert len(await asyncio.wait_for(clients[7].reader.readexactly(12_000_000), 20)) == 12_000_000
        for client in clients:
            client.abort()


@on_loop
async def test_a_flow_with_more_to_read_goes_on_after_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "_SLICE_S", -1.0)
    monkeypatch.setattr(legs, "BUFFER_BYTES", 4096)  # so that the other side never fills and speaks up
    data = random.Random(2).randbytes(1_000_000)
    heard = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        writer.write(b"x")
        while part := await reader.read(1 << 20):
            heard += len(part)

    async with backend(serve) as at, relaying(at) as bench:
        bench.door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)
        client = await bench.connect()
        assert await asyncio.wait_for(client.reader.readexactly(1), 5) == b"x"
        with client.writer.get_extra_info("socket").dup() as sock:
            # All of it waits at the relay before it runs again: one event, and no other after it.
            sock.setblocking(True)
            sock.sendall(data)
            deadline = clock.now() + 5
            while unsent_bytes(sock):
                assert clock.now() < deadline
        await until(lambda: heard == len(data), "all of it arrives")
        await client.close()


def unsent_bytes(sock: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@on_loop
async def test_the_modules_loop_keeps_turning_under_load() -> None:
    async with backend(flood) as at, relaying(at) as bench:
        clients = [await bench.connect() for _ in range(8)]
        readers = [asyncio.create_task(thrown_away(client)) for client in clients]
        latest = began = clock.now()
        longest = 0.0
        while (now := clock.now()) - began < 1.0:
            longest, latest = max(longest, now - latest), now
            await asyncio.sleep(0)
        for client in clients:
            client.abort()
        await asyncio.gather(*readers, return_exceptions=True)
        assert longest < 0.2  # four beats of 250 ms are a hang


async def thrown_away(client: Client) -> None:
    while await client.reader.read(1 << 20):
        pass


@on_loop
async def test_1200_idle_connections_are_kept_and_still_carry_bytes() -> None:
    before = resident_bytes()
    async with backend(echo) as at, relaying(at) as bench:
        socks = [await raw_connect(bench.number) for _ in range(1200)]
        await until(lambda: bench.relay.admission.total == 1200, "all are accepted")
        assert resident_bytes() - before < 60 * 2**20  # with both other ends in this very process
        loop = asyncio.get_running_loop()
        for sock in socks[::100]:
            await loop.sock_sendall(sock, b"ping")
            assert await asyncio.wait_for(loop.sock_recv(sock, 4), 5) == b"ping"
        for sock in socks:
            sock.close()
        await until(lambda: bench.relay.admission.total == 0, "all end")


async def raw_connect(number: int) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", number))
    return sock


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@on_loop
async def test_a_burst_of_2000_short_connections_leaves_nothing_behind() -> None:
    async with backend(http_ok) as at, relaying(at) as bench:
        await asyncio.gather(*(short(bench.number) for _ in range(10)))
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            await asyncio.gather(*(short(bench.number) for _ in range(100)))
        await until(lambda: bench.relay.admission.total == 0, "all flows end")
        await until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + 2, "all descriptors are closed")
        assert bench.port.total == 2010
        assert bench.port.refused == 0


async def short(number: int) -> None:
    client = Client(*await asyncio.open_connection("127.0.0.1", number))
    client.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert (await client.rest()).startswith(b"HTTP/1.1 200")
    await client.close()


@on_loop
async def test_clients_that_vanish_at_any_moment_leave_nothing() -> None:
    rng = random.Random(3)
    async with backend(echo) as at, relaying(at) as bench:
        for _ in range(300):
            client = await bench.connect()
            client.writer.write(rng.randbytes(rng.randrange(0, 200_000)))
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            client.abort()
        await until(lambda: bench.relay.admission.total == 0, "all flows end")
        assert bench.relay.buffered_bytes == 0

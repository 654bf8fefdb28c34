"""Whom a relay refuses: beyond its limits, out of descriptors, or with nobody behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket

from piccolod import clock
from services.router.route import Protocol

from .harness import Client, backend, echo, on_loop, relaying, until


@on_loop
async def test_a_refused_connect_resets_a_raw_client_and_tells_an_http_one() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        at = nobody.getsockname()
        async with relaying(at) as bench:
            assert await bench.refuses()
            assert bench.port.refused == 1
        async with relaying(at, protocol=Protocol.HTTP) as bench:
            client = await bench.connect()
            client.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"Connection refused" in answer
            await client.close()


@on_loop
async def test_a_connect_that_nobody_answers_ends_in_time() -> None:
    # A full backlog: the kernel drops every further SYN.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [started_connect(full.getsockname()) for _ in range(4)]
        async with relaying(full.getsockname(), protocol=Protocol.HTTP, connect_s=0.3) as bench:
            client = await bench.connect()
            client.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            began = clock.now()
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"no answer in time" in answer
            assert 0.25 < clock.now() - began < 2
            await client.close()
        for filler in fillers:
            filler.close()


def started_connect(at: tuple[str, int]) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(at)
    return sock


@on_loop
async def test_one_client_address_cannot_take_every_connection() -> None:
    async with backend(echo) as at, relaying(at, total=100, per_client=5) as bench:
        clients = [await bench.connect() for _ in range(5)]
        await until(lambda: bench.relay.admission.total == 5, "five are accepted")
        assert await bench.refuses()
        assert bench.port.refused == 1
        other = Client(*await asyncio.open_connection("127.0.0.1", bench.number, local_addr=("127.0.0.2", 0)))
        assert await other.ask(b"welcome") == b"welcome"
        await other.close()
        for client in clients:
            await client.close()
        await until(lambda: bench.relay.admission.total == 0, "all have left")
        again = await bench.connect()
        assert await again.ask(b"again") == b"again"
        await again.close()


@on_loop
async def test_the_total_limit_refuses_and_recovers() -> None:
    async with backend(echo) as at, relaying(at, total=3, per_client=10) as bench:
        clients = [await bench.connect() for _ in range(3)]
        await until(lambda: bench.relay.admission.total == 3, "three are accepted")
        assert await bench.refuses()
        await clients.pop().close()
        await until(lambda: bench.relay.admission.total == 2, "one has left")
        again = await bench.connect()
        assert await again.ask(b"x") == b"x"
        for client in [*clients, again]:
            await client.close()


@on_loop
async def test_out_of_descriptors_new_clients_are_refused_and_running_flows_go_on() -> None:
    async with backend(echo) as at, relaying(at) as bench:
        steady = await bench.connect()
        await steady.hears(b"a")
        newcomers = [socket.socket() for _ in range(8)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        top = max(int(fd) for fd in os.listdir("/proc/self/fd"))
        hoard: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + 8, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    hoard.append(os.open("/dev/null", os.O_RDONLY))
            for sock in newcomers:
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", bench.number))
            await until(lambda: bench.port.refused >= 8, "the newcomers are refused")
            await steady.hears(b"b")
        finally:
            for fd in hoard:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for sock in newcomers:
                sock.close()
        after = await bench.connect()
        assert await after.ask(b"c") == b"c"
        await after.close()
        await steady.close()

"""The relay between real sockets: bytes, half-closes, back-pressure, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import resource
import socket
import sys
import termios
import time

import pytest

from piccolod import clock
from services.router import legs
from services.router import relay as relay_module
from services.router.route import Mode, Protocol

from .harness import Client, backend, echo, http_ok, on_loop, relaying, until


@on_loop
async def test_bytes_arrive_unchanged_in_both_directions() -> None:
    data = random.Random(1).randbytes(5_000_000)
    async with backend(echo) as at, relaying(at) as bench:
        client = await bench.connect()
        answer, _ = await asyncio.gather(client.rest(), send_all(client, data))
        assert answer == data
        await client.close()
        await until(lambda: not bench.port.clients, "the flow ends")
        assert bench.port.moved() == (len(data), len(data))


async def send_all(client: Client, data: bytes) -> None:
    client.writer.write(data)
    await client.writer.drain()
    client.writer.write_eof()


@on_loop
async def test_a_half_close_of_the_client_leaves_the_answer_open() -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read(-1) == b"question"
        ended.set()
        for part in (b"an", b"sw", b"er"):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)

    async with backend(serve) as at, relaying(at) as bench:
        client = await bench.connect()
        assert await client.ask(b"question") == b"answer"
        assert ended.is_set()
        await client.close()


@on_loop
async def test_a_half_close_of_the_container_leaves_the_question_open() -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        heard.set_result(await reader.read(-1))

    async with backend(serve) as at, relaying(at) as bench:
        client = await bench.connect()
        assert await client.rest() == b"bye"
        client.writer.write(b"still here")
        client.writer.write_eof()
        assert await asyncio.wait_for(heard, 5) == b"still here"
        await client.close()


@on_loop
async def test_a_server_that_speaks_first_is_heard() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        await reader.read(-1)

    async with backend(serve) as at, relaying(at) as bench:
        client = await bench.connect()
        assert await asyncio.wait_for(client.reader.readline(), 5) == b"220 ready\r\n"
        await client.close()


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
    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

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
    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

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
async def test_a_reset_of_either_side_is_a_reset_for_the_other() -> None:
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if line == b"die\n":
                Client(reader, writer).abort()
                return
            await reader.read(-1)
        except ConnectionResetError:
            seen.append("reset")

    async with backend(serve) as at, relaying(at) as bench:
        client = await bench.connect()
        client.writer.write(b"die\n")
        assert await client.was_reset()
        await client.close()
        other = await bench.connect()
        other.writer.write(b"live\n")
        await until(lambda: len(bench.port.clients) == 1 and bench.port.moved()[0] >= 9, "the line is forwarded")
        other.abort()
        await until(lambda: seen == ["reset"], "the container sees the reset")
        await until(lambda: not bench.port.clients, "the flow ends")


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
        fillers = [await started_connect(full.getsockname()) for _ in range(4)]
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


async def started_connect(at: tuple[str, int]) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(at)
    return sock


@on_loop
async def test_an_idle_flow_ends_and_a_busy_one_does_not() -> None:
    async with backend(echo) as at, relaying(at, idle_s=0.6) as bench:
        idle, busy = await bench.connect(), await bench.connect()
        began = clock.now()
        while clock.now() - began < 1.5:
            busy.writer.write(b"tick")
            assert await asyncio.wait_for(busy.reader.readexactly(4), 5) == b"tick"
            await asyncio.sleep(0.05)
        assert await asyncio.wait_for(idle.was_reset(), 5)
        assert len(bench.port.clients) == 1
        await idle.close()
        await busy.close()


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
        steady.writer.write(b"a")
        assert await asyncio.wait_for(steady.reader.readexactly(1), 5) == b"a"
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
            steady.writer.write(b"b")
            assert await asyncio.wait_for(steady.reader.readexactly(1), 5) == b"b"
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


@on_loop
async def test_cutting_a_port_resets_its_flows_at_once() -> None:
    async with backend(echo) as at, relaying(at) as bench:
        clients = [await bench.connect() for _ in range(3)]
        await until(lambda: bench.relay.admission.total == 3, "three are accepted")
        bench.relay.cut(bench.port)
        for client in clients:
            assert await asyncio.wait_for(client.was_reset(), 1)
            await client.close()
        assert bench.relay.admission.total == 0


@on_loop
async def test_a_verdict_that_changes_reaches_running_flows_within_100_ms() -> None:
    async with backend(echo) as at, relaying(at) as bench:
        client = await bench.connect()
        client.writer.write(b"a")
        await asyncio.wait_for(client.reader.readexactly(1), 5)

        def shut(port: object) -> Mode:
            bench.relay.cut(bench.port)
            return Mode.HOLD

        bench.judge = shut
        began = clock.now()
        assert await asyncio.wait_for(client.was_reset(), 1)
        assert clock.now() - began < 0.25  # 100 ms and this machine's lateness
        await client.close()


@on_loop
async def test_a_worker_that_was_frozen_judges_before_it_moves_a_byte() -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            heard.append(data)

    async with backend(serve) as at, relaying(at) as bench:
        client = await bench.connect()
        client.writer.write(b"before")
        await until(lambda: heard == [b"before"], "the flow works")

        def shut(port: object) -> Mode:
            bench.relay.cut(bench.port)
            return Mode.HOLD

        bench.judge = shut
        client.writer.write(b"after")
        time.sleep(0.15)
        assert await asyncio.wait_for(client.was_reset(), 1)
        await asyncio.sleep(0.05)
        assert heard == [b"before"]
        await client.close()


@on_loop
async def test_drained_flows_may_end_by_themselves_and_are_cut_when_time_is_up() -> None:
    async with backend(echo) as at, relaying(at) as bench:
        polite, rude = await bench.connect(), await bench.connect()
        await until(lambda: bench.relay.admission.total == 2, "both are accepted")
        bench.port.drain_at = clock.now() + 0.4
        assert await polite.ask(b"last words") == b"last words"
        began = clock.now()
        assert await asyncio.wait_for(rude.was_reset(), 5)
        assert clock.now() - began > 0.2
        await polite.close()
        await rude.close()


@on_loop
async def test_garbage_and_silence_pass_as_they_are() -> None:
    rng = random.Random(7)
    async with backend(echo) as at, relaying(at) as bench:
        for _ in range(50):
            data = rng.randbytes(rng.randrange(0, 3000))
            client = await bench.connect()
            assert await client.ask(data) == data
            await client.close()


@on_loop
async def test_urgent_data_does_not_stop_what_follows_it() -> None:
    async with backend(echo) as at, relaying(at) as bench:
        client = await bench.connect()
        client.writer.write(b"x")
        assert await asyncio.wait_for(client.reader.readexactly(1), 5) == b"x"
        with client.writer.get_extra_info("socket").dup() as sock:
            # Both before the relay reads: its first read ends at the urgent mark.
            sock.send(b"before!", socket.MSG_OOB)
            sock.send(b"after")
        assert await asyncio.wait_for(client.reader.readexactly(11), 5) == b"beforeafter"
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


@pytest.mark.parametrize("seed", range(4))
def test_random_ends_in_random_order_keep_every_byte(seed: int) -> None:
    @on_loop
    async def run() -> None:
        rng = random.Random(seed)
        async with backend(echo) as at, relaying(at) as bench:
            await asyncio.gather(*(conversation(bench.number, rng.randrange(1 << 30)) for _ in range(40)))
            await until(lambda: bench.relay.admission.total == 0, "all flows end")

    run()


async def conversation(number: int, seed: int) -> None:
    rng = random.Random(seed)
    client = Client(*await asyncio.open_connection("127.0.0.1", number))
    sent = bytearray()

    async def send() -> None:
        for _ in range(rng.randrange(20)):
            part = rng.randbytes(rng.choice((1, 100, 5000, 200_000)))
            sent.extend(part)
            client.writer.write(part)
            await client.writer.drain()
        client.writer.write_eof()

    answer, _ = await asyncio.gather(client.rest(), send())
    assert answer == bytes(sent)
    await client.close()

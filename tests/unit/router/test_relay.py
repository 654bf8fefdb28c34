"""The relay between real sockets: every byte arrives, and an end of one side is an end of the other."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest

from .harness import Client, backend, echo, on_loop, relaying, until


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
        await client.hears(b"x")
        with client.writer.get_extra_info("socket").dup() as sock:
            # Both before the relay reads: its first read ends at the urgent mark.
            sock.send(b"before!", socket.MSG_OOB)
            sock.send(b"after")
        assert await asyncio.wait_for(client.reader.readexactly(11), 5) == b"beforeafter"
        await client.close()


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

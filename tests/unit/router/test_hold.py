"""Connections that wait: released with every byte, or given up in the form that their protocol understands."""

from __future__ import annotations

import asyncio

import pytest

from piccolod import clock
from services.router.route import Mode, Protocol, Target

from .harness import backend, echo, http_ok, on_loop, relaying, until

GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@on_loop
async def test_what_a_held_client_sent_arrives_unchanged_when_it_is_released() -> None:
    async with backend(echo) as at, relaying(None, mode=Mode.HOLD) as bench:
        client = await bench.connect()
        client.writer.write(b"first, ")
        await until(lambda: len(bench.port.held) == 1, "it is held")
        client.writer.write(b"second")
        client.writer.write_eof()
        await asyncio.sleep(0.1)
        assert len(bench.port.held) == 1
        bench.port.target = Target(listener="web", address=at[0], port=at[1])
        bench.allow(Mode.LOCAL)
        assert await client.rest() == b"first, second"
        await client.close()


@on_loop
async def test_a_held_client_that_sends_a_lot_is_bounded_and_loses_nothing() -> None:
    data = bytes(range(256)) * 40_000
    async with backend(echo) as at, relaying(at, mode=Mode.HOLD) as bench:
        client = await bench.connect()
        client.writer.write(data)
        client.writer.write_eof()
        await until(lambda: len(bench.port.held) == 1, "it is held")
        await asyncio.sleep(0.1)
        assert bench.relay.buffered_bytes == 0
        bench.allow(Mode.LOCAL)
        assert await client.rest() == data
        await client.close()


@on_loop
async def test_a_raw_client_is_reset_when_its_hold_is_over() -> None:
    async with relaying(None, mode=Mode.HOLD, hold_s=0.3) as bench:
        began = clock.now()
        client = await bench.connect()
        client.writer.write(b"anybody?")
        assert await client.was_reset()
        assert 0.25 < clock.now() - began < 2
        assert bench.port.refused == 1
        await client.close()


@pytest.mark.parametrize("protocol", [Protocol.HTTP, Protocol.WEBSOCKET])
def test_an_http_client_is_told_when_to_come_back(protocol: Protocol) -> None:
    @on_loop
    async def run() -> None:
        async with relaying(None, mode=Mode.HOLD, protocol=protocol, hold_s=0.3) as bench:
            bench.port.reason = "this node does not lead it"
            client = await bench.connect()
            client.writer.write(GET)
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: 1\r\n" in answer
            assert b"this node does not lead it" in answer
            await client.close()
            await until(lambda: bench.relay.admission.total == 0, "it is gone")

    run()


@on_loop
async def test_the_answer_arrives_even_while_the_client_is_still_sending() -> None:
    async with relaying(None, mode=Mode.HOLD, protocol=Protocol.HTTP, hold_s=0.2) as bench:
        client = await bench.connect()
        client.writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000)
        assert (await client.rest()).startswith(b"HTTP/1.1 503 ")
        await client.close()


@on_loop
async def test_a_client_that_has_not_asked_yet_is_told_too_and_may_ask_afterwards() -> None:
    async with relaying(None, mode=Mode.HOLD, protocol=Protocol.HTTP, hold_s=0.2) as bench:
        client = await bench.connect()
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        client.writer.write(GET)
        await client.writer.drain()
        assert await client.rest()
        await client.close()


@on_loop
async def test_a_client_that_neither_reads_nor_ends_is_dropped_after_the_farewell() -> None:
    async with relaying(None, mode=Mode.HOLD, protocol=Protocol.HTTP, hold_s=0.1, farewell_s=0.2) as bench:
        client = await bench.connect()
        await until(lambda: bench.port.total == 1, "it is accepted")
        await until(lambda: bench.relay.admission.total == 0, "it is dropped", within_s=3)
        await client.close()


@on_loop
async def test_a_held_client_that_goes_away_is_forgotten() -> None:
    async with relaying(None, mode=Mode.HOLD) as bench:
        client = await bench.connect()
        await until(lambda: len(bench.port.held) == 1, "it is held")
        client.abort()
        await until(lambda: not bench.port.held and bench.relay.admission.total == 0, "it is forgotten")


@on_loop
async def test_500_held_clients_are_all_served_after_the_release() -> None:
    async with backend(http_ok) as at, relaying(at, mode=Mode.HOLD, protocol=Protocol.HTTP) as bench:
        clients = [await bench.connect() for _ in range(500)]
        for client in clients:
            client.writer.write(GET)
        await until(lambda: len(bench.port.held) == 500, "all are held")
        bench.allow(Mode.LOCAL)
        answers = await asyncio.gather(*(client.rest() for client in clients))
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        for client in clients:
            await client.close()


@on_loop
async def test_a_closed_port_refuses_and_dismisses_who_waits() -> None:
    async with relaying(None, mode=Mode.HOLD) as bench:
        waiting = await bench.connect()
        await until(lambda: len(bench.port.held) == 1, "it is held")
        bench.allow(Mode.CLOSED)
        bench.relay.dismiss(bench.port)
        assert await asyncio.wait_for(waiting.was_reset(), 1)
        assert await bench.refuses()
        await waiting.close()


@on_loop
async def test_an_http_client_that_waits_for_an_app_that_is_removed_still_gets_its_answer() -> None:
    async with relaying(None, mode=Mode.HOLD, protocol=Protocol.HTTP) as bench:
        client = await bench.connect()
        client.writer.write(GET)
        await until(lambda: len(bench.port.held) == 1, "it is held")
        bench.relay.forget(bench.port)
        assert (await client.rest()).startswith(b"HTTP/1.1 503 ")
        await client.close()

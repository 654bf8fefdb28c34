"""Flows that the relay itself ends: cut, judged anew, drained, idle."""

from __future__ import annotations

import asyncio
import time

from piccolod import clock

from .harness import backend, echo, on_loop, relaying, until


@on_loop
async def test_an_idle_flow_ends_and_a_busy_one_does_not() -> None:
    async with backend(echo) as at, relaying(at, idle_s=0.6) as bench:
        idle, busy = await bench.connect(), await bench.connect()
        began = clock.now()
        while clock.now() - began < 1.5:
            await busy.hears(b"tick")
            await asyncio.sleep(0.05)
        assert await asyncio.wait_for(idle.was_reset(), 5)
        assert len(bench.port.clients) == 1
        await idle.close()
        await busy.close()


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
        await client.hears(b"a")
        bench.shut()
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
        bench.shut()
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

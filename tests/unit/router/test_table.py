"""Routes against a real deadline page: what the gate shuts, what a new epoch ends, what drains."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod import clock
from piccolod.leadership import page as deadline_page
from piccolod.leadership.gate import Gate
from services.router import table as table_module
from services.router.flow import Port
from services.router.relay import Relay
from services.router.route import Listener, Mode, Route, Target
from services.router.table import RouteTable

from .harness import LIMITS, RESOURCE, Client, Leader, backend, echo, listening, on_loop, until


class Node:
    def __init__(self, folder: Path) -> None:
        self.leader = Leader(folder / "page")
        self.leader.lead()
        self.reader = deadline_page.PageReader(folder / "page")
        self.changes: list[str] = []
        self.table = RouteTable(Gate(self.reader), self.changes.append)
        self.relay = Relay(LIMITS, self.table.judge)
        self.table.bind(self.relay)
        self.relay.attach(asyncio.get_running_loop())
        self.sock = listening()
        self.number: int = self.sock.getsockname()[1]

    def route(self, at: tuple[str, int] | None, mode: Mode = Mode.LOCAL, epoch: int = 4, token: int = 9) -> Route:
        return Route(
            app="notes",
            mode=mode,
            epoch=epoch,
            resource=RESOURCE,
            token=token,
            listeners=(Listener(name="web", public_port=self.number, hold_s=5),),
            targets=(Target(listener="web", address=at[0], port=at[1]),) if at else (),
        )

    @property
    def port(self) -> Port:
        port = self.table.port("notes", "web")
        assert port is not None
        return port

    def open(self) -> None:
        self.relay.open(self.port, self.sock)

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.number))

    async def talking(self) -> Client:
        client = await self.connect()
        client.writer.write(b"a")
        assert await asyncio.wait_for(client.reader.readexactly(1), 5) == b"a"
        return client


@contextlib.contextmanager
def node(folder: Path) -> Iterator[Node]:
    made = Node(folder)
    try:
        yield made
    finally:
        made.relay.close()
        made.reader.close()
        made.leader.close()
        made.sock.close()


@on_loop
async def test_local_is_in_force_while_the_gate_holds_this_very_token(tmp_path: Path) -> None:
    with node(tmp_path) as n:
        n.table.offer(n.route(("127.0.0.1", 1)))
        assert (n.port.mode, n.port.reason) == (Mode.LOCAL, "")
        n.leader.lead(token=10, epoch=5)
        n.table.judge_all()
        assert (n.port.mode, n.port.reason) == (Mode.HOLD, "another term has begun")
        n.leader.lead(token=10, epoch=5, closing=True)
        n.table.judge_all()
        assert (n.port.mode, n.port.reason) == (Mode.HOLD, "its term is being closed")
        assert n.changes == ["notes", "notes"]


@on_loop
async def test_a_gate_that_shuts_cuts_running_flows_and_holds_new_ones_until_it_opens(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with node(tmp_path) as n:
            n.table.offer(n.route(at))
            n.open()
            client = await n.talking()
            began = clock.now()
            n.leader.lose()
            assert await asyncio.wait_for(client.was_reset(), 2)
            assert clock.now() - began < 0.3
            waiting = await n.connect()
            waiting.writer.write(b"patient")
            await until(lambda: len(n.port.held) == 1, "the new one is held")
            n.leader.lead()
            assert await asyncio.wait_for(waiting.reader.readexactly(7), 2) == b"patient"
            await client.close()
            await waiting.close()


@on_loop
async def test_a_deadline_that_passes_ends_the_flows_without_anybody_saying_so(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with node(tmp_path) as n:
            n.leader.lead(hard_at=clock.now() + 0.4)
            n.table.offer(n.route(at))
            n.open()
            client = await n.talking()
            assert await asyncio.wait_for(client.was_reset(), 2)
            assert n.port.reason == "the deadline has passed"
            await client.close()


@on_loop
async def test_an_app_without_leadership_is_guarded_by_no_gate(tmp_path: Path) -> None:
    with node(tmp_path) as n:
        n.leader.lose()
        route = n.route(("127.0.0.1", 1))
        n.table.offer(Route(app="notes", mode=Mode.LOCAL, epoch=0, listeners=route.listeners, targets=route.targets))
        assert n.port.mode is Mode.LOCAL


@on_loop
async def test_a_new_epoch_closes_the_flows_of_the_dead_one_at_once(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with node(tmp_path) as n:
            n.table.offer(n.route(at))
            n.open()
            client = await n.talking()
            n.leader.lead(token=10, epoch=5)
            assert n.table.offer(n.route(at, epoch=5, token=10)).accepted
            assert await asyncio.wait_for(client.was_reset(), 1)
            again = await n.talking()
            assert not n.table.offer(n.route(at, mode=Mode.CLOSED, epoch=4)).accepted
            again.writer.write(b"b")
            assert await asyncio.wait_for(again.reader.readexactly(1), 1) == b"b"
            await client.close()
            await again.close()


@on_loop
async def test_a_planned_hold_lets_flows_drain_and_holds_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "DRAIN_S", 0.5)
    async with backend(echo) as at:
        with node(tmp_path) as n:
            n.table.offer(n.route(at))
            n.open()
            client = await n.talking()
            n.table.offer(n.route(at, mode=Mode.HOLD))
            began = clock.now()
            waiting = await n.connect()
            await until(lambda: len(n.port.held) == 1, "the new one is held")
            client.writer.write(b"still")
            assert await asyncio.wait_for(client.reader.readexactly(5), 1) == b"still"
            assert await asyncio.wait_for(client.was_reset(), 2)
            assert clock.now() - began > 0.3
            assert len(n.port.held) == 1
            await client.close()
            await waiting.close()


@on_loop
async def test_a_hold_that_is_taken_back_spares_the_flows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "DRAIN_S", 0.3)
    async with backend(echo) as at:
        with node(tmp_path) as n:
            n.table.offer(n.route(at))
            n.open()
            client = await n.talking()
            n.table.offer(n.route(at, mode=Mode.HOLD))
            n.table.offer(n.route(at))
            await asyncio.sleep(0.5)
            client.writer.write(b"b")
            assert await asyncio.wait_for(client.reader.readexactly(1), 1) == b"b"
            await client.close()


@on_loop
async def test_a_container_that_moved_gets_the_held_clients_and_no_old_flows(tmp_path: Path) -> None:
    async with backend(echo) as old, backend(echo) as new:
        with node(tmp_path) as n:
            n.table.offer(n.route(old))
            n.open()
            client = await n.talking()
            n.table.offer(n.route(new))
            assert await asyncio.wait_for(client.was_reset(), 1)
            again = await n.talking()
            assert again.writer.get_extra_info("peername")[1] == n.number
            assert str(n.port.target) == f"127.0.0.1:{new[1]}"
            await client.close()
            await again.close()


@on_loop
async def test_forgetting_an_app_cuts_everything_of_it(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with node(tmp_path) as n:
            n.table.offer(n.route(at))
            n.open()
            client = await n.talking()
            assert n.table.forget("notes")
            assert not n.table.forget("notes")
            assert await asyncio.wait_for(client.was_reset(), 1)
            assert n.table.wanted() == {}
            with contextlib.suppress(ConnectionResetError):
                late = await n.connect()
                assert await late.was_reset()
                await late.close()
            await client.close()


@on_loop
async def test_closing_an_app_dismisses_who_waits_for_it(tmp_path: Path) -> None:
    with node(tmp_path) as n:
        n.table.offer(n.route(None))
        n.open()
        client = await n.connect()
        await until(lambda: len(n.port.held) == 1, "it is held")
        n.table.offer(n.route(None, mode=Mode.CLOSED))
        assert await asyncio.wait_for(client.was_reset(), 1)
        await client.close()

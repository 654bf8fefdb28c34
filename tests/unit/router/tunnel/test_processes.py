"""Tunnels between routers as they run: processes, commands, `state_dir/cluster` as consensus writes it, and SIGKILL."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from piccolod import cluster_mode
from piccolod.pki.authority import Authority, make_key, make_request
from piccolod.pki.identity import Identity
from piccolod.protocol.base import Level
from piccolod.protocol.cluster import KnownMember
from piccolod.protocol.events import HealthChanged
from piccolod.protocol.router import Endpoint, GetRoutes, RegisterAppRoute, RouteListener
from piccolod.protocol.router import TestRoute as TryRoute

from ..harness import Client, backend, echo, listening, on_loop, until
from ..supervised import Tree, Worker, heard_until, tree
from .harness import CLUSTER


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: paths of unix sockets are limited."""
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as name:
        yield Path(name)


def free_port() -> int:
    with listening() as sock:
        number: int = sock.getsockname()[1]
        return number


def make_member(made: Tree, authority: Authority) -> None:
    """`state_dir/cluster` of a member. The mode comes last."""
    name, folder = made.config.node.name, made.paths.cluster
    cluster_mode.make_folder(folder)
    key = make_key()
    (folder / "node.key").write_bytes(key)
    (folder / "ca.pem").write_text(authority.pem)
    (folder / "node.pem").write_text(authority.sign(make_request(key), Identity(CLUSTER, name), "127.0.0.1", time.time()))
    known = {each: KnownMember(address="127.0.0.1", client_url="", rpc="127.0.0.1:1") for each in ("n1", "n2")}
    (folder / "members.json").write_bytes(msgspec.json.encode(known))
    cluster_mode.enter(folder, cluster_mode.Mode(cluster=CLUSTER, node=name, since_ms=1))


class Pair(NamedTuple):
    n1: Tree
    n2: Tree
    number: int
    authority: Authority

    def led(self, at: tuple[str, int], epoch: int = 4) -> RegisterAppRoute:
        return RegisterAppRoute(
            app="notes",
            mode="local",
            epoch=epoch,
            resource="app:notes",
            token=9,
            listeners=(self._listener(free_port()),),
            endpoints=(Endpoint(listener="web", address=at[0], port=at[1]),),
        )

    def led_elsewhere(self, epoch: int = 4) -> RegisterAppRoute:
        return RegisterAppRoute(
            app="notes",
            mode="tunnel",
            epoch=epoch,
            resource="",
            token=0,
            leader="n2",
            leader_addr=f"127.0.0.1:{self.n2.config.cluster.peer_port}",
            listeners=(self._listener(self.number),),
        )

    def _listener(self, number: int) -> RouteListener:
        return RouteListener(name="web", public_port=number, flow="tcp", protocol="raw", client_ip="none", hold_s=8.0)

    async def asked(self, data: bytes) -> bytes:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.number))
        try:
            return await client.ask(data)
        finally:
            await client.close()


@contextlib.asynccontextmanager
async def pair(folder: Path, workers: int = 1, members: bool = True) -> AsyncIterator[Pair]:
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    authority = Authority.create(CLUSTER)
    async with (
        tree(folder / "a", workers, name="n1", peer_port=free_port()) as n1,
        tree(folder / "b", workers, name="n2", peer_port=free_port()) as n2,
    ):
        made = Pair(n1, n2, free_port(), authority)
        if members:
            for each in (n1, n2):
                make_member(each, authority)
        yield made


@on_loop
async def test_any_worker_of_any_node_reaches_any_worker_of_the_leader(folder: Path) -> None:
    async with backend(echo) as at, pair(folder, workers=2) as made:
        await made.n2.both(made.led(at))
        for states in await made.n1.both(made.led_elsewhere()):
            (state,) = states.routes
            assert (state.mode, state.target) == ("tunnel", f"n2 (127.0.0.1:{made.n2.config.cluster.peer_port})")
        assert await asyncio.gather(*(made.asked(b"%d" % n) for n in range(20))) == [b"%d" % n for n in range(20)]


@on_loop
async def test_a_node_that_becomes_a_member_takes_part_without_a_restart(folder: Path) -> None:
    async with backend(echo) as at, pair(folder, members=False) as made:
        await made.n2.both(made.led(at))
        await made.n1.both(made.led_elsewhere())
        asking = asyncio.create_task(made.asked(b"patient"))

        async def reason() -> str:
            return (await made.n1.call(GetRoutes())).routes[0].reason

        while await reason() != "this node is a member of no cluster":
            await asyncio.sleep(0.05)
        for each in (made.n1, made.n2):
            make_member(each, made.authority)
        assert await asyncio.wait_for(asking, 8) == b"patient"
        assert await reason() == ""


@on_loop
async def test_the_test_of_a_route_goes_the_way_of_a_client(folder: Path) -> None:
    async with backend(echo) as at, pair(folder) as made:
        await made.n1.both(made.led_elsewhere())
        while not (test := await made.n1.call(TryRoute(app="notes", listener="web"))).reason.endswith("no route for notes/web"):
            assert not test.ok
            await asyncio.sleep(0.05)
        await made.n2.both(made.led(at))
        test = await made.n1.call(TryRoute(app="notes", listener="web"))
        assert (test.ok, test.reason) == (True, "")
        assert test.connect_ms > 0


@on_loop
async def test_the_leaders_router_is_killed_and_new_clients_are_served_by_the_next_one(folder: Path) -> None:
    async with backend(echo) as at, pair(folder) as made:
        await made.n2.both(made.led(at))
        await made.n1.both(made.led_elsewhere())
        flowing = Client(*await asyncio.open_connection("127.0.0.1", made.number))
        await flowing.hears(b"a")
        old = made.n2.living["router.0"]
        old.kill()
        assert await asyncio.wait_for(flowing.was_reset(), 5)
        asking = asyncio.create_task(made.asked(b"patient"))
        old.end()
        Worker(made.n2, "router.0").start()
        assert await asyncio.wait_for(asking, 8) == b"patient"
        await flowing.close()


@on_loop
async def test_a_peer_port_that_somebody_else_holds_is_a_warning_that_goes(folder: Path) -> None:
    async with pair(folder, members=False) as made:
        blocker = listening(number=made.n2.config.cluster.peer_port)
        make_member(made.n2, made.authority)
        events = await heard_until(made.n2, lambda e: isinstance(e, HealthChanged) and e.level is Level.WARN, "the warning")
        (warning,) = [e for e in events if isinstance(e, HealthChanged) and e.level is Level.WARN]
        assert "no traffic for other nodes" in warning.reason
        blocker.close()
        await until(lambda: made.n2.living["router.0"].status[0] == Level.OK, "it is well again")

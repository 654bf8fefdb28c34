"""The router as it runs: two processes, real commands, sockets kept by another, and SIGKILL."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod import clock
from piccolod.errors import Invalid, NotFound
from piccolod.protocol.events import HealthChanged, RouteChanged
from piccolod.protocol.router import Endpoint, ForgetAppRoute, GetRoutes, RegisterAppRoute, RouteListener
from piccolod.protocol.router import TestRoute as TryRoute

from .harness import Client, backend, echo, http_ok, listening, on_loop, until
from .supervised import Worker, heard_until, tree


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: paths of unix sockets are limited."""
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as name:
        yield Path(name)


def free_port() -> int:
    with listening() as sock:
        number: int = sock.getsockname()[1]
        return number


def route(
    number: int, at: tuple[str, int] | None, mode: str = "local", epoch: int = 4, token: int = 9, **more: object
) -> RegisterAppRoute:
    listener = {
        "name": "web",
        "public_port": number,
        "flow": "tcp",
        "protocol": "raw",
        "client_ip": "none",
        "hold_s": 5.0,
    } | more
    return RegisterAppRoute(
        app="notes",
        mode=mode,
        epoch=epoch,
        resource="app:notes",
        token=token,
        listeners=(RouteListener(**listener),),  # type: ignore[arg-type]
        endpoints=(Endpoint(listener="web", address=at[0], port=at[1]),) if at else (),
    )


async def connect(number: int, host: str = "127.0.0.1") -> Client:
    return Client(*await asyncio.open_connection(host, number))


async def asked(number: int, data: bytes = b"hello") -> bytes:
    client = await connect(number)
    try:
        return await client.ask(data)
    finally:
        await client.close()


@on_loop
async def test_a_registered_route_forwards_and_is_told(folder: Path) -> None:
    async with backend(echo) as at, tree(folder) as t:
        number = free_port()
        for states in await t.both(route(number, at)):
            (state,) = states.routes
            assert (state.mode, state.reason, state.target) == ("local", "", f"127.0.0.1:{at[1]}")
        assert await asked(number) == b"hello"

        async def counted() -> tuple[int, int, int]:
            states = [states.routes[0] for states in await t.both(GetRoutes())]
            return sum(s.total_connections for s in states), sum(s.bytes_in for s in states), sum(s.bytes_out for s in states)

        deadline = clock.now() + 5
        while await counted() != (1, 5, 5):
            assert clock.now() < deadline, await counted()
        events = await heard_until(t, lambda e: isinstance(e, RouteChanged) and e.mode == "local", "the route is told")
        assert {e.worker for e in events if isinstance(e, RouteChanged)} == {"router.0"}


@on_loop
async def test_every_address_of_the_node_serves_both_families(folder: Path) -> None:
    async with backend(echo) as at, tree(folder, workers=1) as t:
        number = free_port()
        await t.both(route(number, at))
        for host in ("127.0.0.1", "127.9.9.9", "::1"):
            client = await connect(number, host)
            assert await client.ask(b"hi") == b"hi"
            await client.close()


@on_loop
async def test_a_lower_epoch_changes_nothing_and_is_answered_with_the_truth(folder: Path) -> None:
    async with backend(echo) as at, tree(folder, workers=1) as t:
        number = free_port()
        await t.both(route(number, at))
        (answer,) = (await t.call(route(number, at, mode="closed", epoch=3))).routes
        assert (answer.mode, answer.epoch) == ("local", 4)
        assert await asked(number) == b"hello"


@on_loop
async def test_a_mistake_and_an_unknown_listener_are_refused_by_name(folder: Path) -> None:
    async with tree(folder, workers=1) as t:
        with pytest.raises(Invalid) as caught:
            await t.call(route(free_port(), None, protocol="gopher"))
        assert caught.value.errors[0].path == "listeners[0].protocol"
        with pytest.raises(NotFound):
            await t.call(TryRoute(app="notes", listener="web"))
        assert (await t.call(GetRoutes(app="notes"))).routes == ()
        assert (await t.call(ForgetAppRoute(app="notes"))).routes == ()


@on_loop
async def test_forgetting_and_closing_shut_the_public_port(folder: Path) -> None:
    async with backend(echo) as at, tree(folder) as t:
        number = free_port()
        for ending in (route(number, at, mode="closed"), ForgetAppRoute(app="notes")):
            await t.both(route(number, at))
            assert await asked(number) == b"hello"
            await t.both(ending)  # type: ignore[type-var]
            await until(lambda: not t.kept, "the supervisor keeps no socket")
            with contextlib.suppress(ConnectionError):
                await asked(number)
                raise AssertionError("the port still answers")


@on_loop
async def test_a_held_client_is_served_when_the_route_becomes_local(folder: Path) -> None:
    async with backend(echo) as at, tree(folder) as t:
        number = free_port()
        await t.both(route(number, None, mode="hold"))
        clients = [await connect(number) for _ in range(20)]
        answers = [asyncio.create_task(client.ask(b"patient")) for client in clients]

        async def waiting() -> int:
            return sum(states.routes[0].connections for states in await t.both(GetRoutes()))

        deadline = clock.now() + 5
        while (held := await waiting()) < 20:
            assert clock.now() < deadline, held
        await t.both(route(number, at))
        assert await asyncio.gather(*answers) == [b"patient"] * 20
        for client in clients:
            await client.close()


@on_loop
async def test_a_shut_gate_downgrades_what_apps_wants_and_says_why(folder: Path) -> None:
    async with backend(echo) as at, tree(folder) as t:
        number = free_port()
        await t.both(route(number, at))
        client = await connect(number)
        client.writer.write(b"a")
        assert await asyncio.wait_for(client.reader.readexactly(1), 5) == b"a"
        t.lead()
        assert await asyncio.wait_for(client.was_reset(), 2)
        await client.close()
        for states in await t.both(GetRoutes()):
            assert (states.routes[0].mode, states.routes[0].reason) == ("hold", "this node does not lead it")
        await heard_until(
            t, lambda e: isinstance(e, RouteChanged) and e.mode == "hold" and e.reason != "", "the downgrade is told"
        )
        test = await t.call(TryRoute(app="notes", listener="web"))
        assert (test.ok, test.reason) == (False, "this node does not lead it")


@on_loop
async def test_a_test_dials_what_a_client_would_reach(folder: Path) -> None:
    async with backend(echo) as at, tree(folder, workers=1) as t:
        number = free_port()
        await t.call(route(number, at))
        test = await t.call(TryRoute(app="notes", listener="web"))
        assert test.ok
        assert 0 < test.connect_ms < 1000
        with listening() as gone:
            nobody = gone.getsockname()
        await t.call(route(number, nobody))
        test = await t.call(TryRoute(app="notes", listener="web"))
        assert not test.ok
        assert str(nobody[1]) in test.reason


@on_loop
async def test_a_port_of_another_program_is_named_never_advertised_and_had_later(folder: Path) -> None:
    async with backend(echo) as at, tree(folder) as t:
        with socket.socket() as foreign:
            foreign.bind(("0.0.0.0", 0))
            foreign.listen()
            number = foreign.getsockname()[1]
            for states in await t.both(route(number, at)):
                (state,) = states.routes
                assert state.mode == "closed"
                assert f"port {number} cannot be opened" in state.reason
            events = await heard_until(t, lambda e: isinstance(e, RouteChanged) and e.mode == "closed", "it is told")
            assert not any(isinstance(e, RouteChanged) and e.mode == "local" for e in events)
            await until(lambda: all(w.status[0] == "WARN" for w in t.living.values()), "health warns")
            assert f"notes/web: port {number}" in t.living["router.0"].status[1]
        await heard_until(t, lambda e: isinstance(e, RouteChanged) and e.mode == "local", "the port is had")
        await until(lambda: all(w.status[0] == "OK" for w in t.living.values()), "health is well again")
        assert await asked(number) == b"hello"


@on_loop
async def test_after_a_kill_forwarding_is_back_within_150_ms_and_no_connect_is_refused(folder: Path) -> None:
    async with backend(http_ok) as at, tree(folder, workers=1) as t:
        number = free_port()
        await t.both(route(number, at))
        successor = Worker(t, "router.0")  # imported and waiting, as the zygote's children are
        old = t.living["router.0"]
        refused: list[Exception] = []
        stop = asyncio.Event()
        answered: list[tuple[float, float]] = []  # connected, answered

        async def poll() -> None:
            while not stop.is_set():
                began = clock.now()
                try:
                    client = await connect(number)
                except OSError as error:
                    refused.append(error)
                    continue
                client.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                with contextlib.suppress(OSError):
                    if (await client.rest()).startswith(b"HTTP/1.1 200"):
                        answered.append((began, clock.now()))
                await client.close()
                await asyncio.sleep(0.002)

        polling = [asyncio.create_task(poll()) for _ in range(4)]
        await until(lambda: len(answered) > 20, "it answers")
        await until(lambda: successor.waits_for_start, "the successor is imported")
        old.kill()
        killed_at = clock.now()
        successor.start()
        await asyncio.wait_for(successor.ready.wait(), 5)
        ready_after_s = clock.now() - killed_at
        await until(lambda: answered[-1][0] > killed_at, "it answers again")
        back_after_s = min(at for began, at in answered if began > killed_at) - killed_at
        stop.set()
        await asyncio.gather(*polling)
        old.end()
        assert refused == []
        assert back_after_s < 0.15, f"back after {back_after_s * 1000:.0f} ms, ready after {ready_after_s * 1000:.0f} ms"


@on_loop
async def test_a_saved_local_route_is_held_when_the_gate_shut_meanwhile(folder: Path) -> None:
    async with backend(echo) as at, tree(folder, workers=1) as t:
        number = free_port()
        await t.both(route(number, at))
        t.living["router.0"].kill()
        t.living["router.0"].process.wait()
        t.lead()
        t.living["router.0"].end()
        Worker(t, "router.0").start()
        await asyncio.wait_for(t.living["router.0"].ready.wait(), 15)
        (state,) = (await t.call(GetRoutes())).routes
        assert (state.mode, state.reason) == ("hold", "this node does not lead it")


@on_loop
async def test_a_forgotten_route_stays_forgotten_over_a_kill_and_garbage_is_dropped(folder: Path) -> None:
    async with backend(echo) as at, tree(folder, workers=1) as t:
        await t.both(route(free_port(), at))
        await t.both(ForgetAppRoute(app="notes"))
        (t.paths.routes / "router.0" / "bad.json").write_text("{")
        t.living["router.0"].kill()
        t.living["router.0"].end()
        Worker(t, "router.0").start()
        await asyncio.wait_for(t.living["router.0"].ready.wait(), 15)
        assert (await t.call(GetRoutes())).routes == ()
        assert "bad.json" in t.living["router.0"].log


@on_loop
async def test_while_one_worker_is_stopped_or_dead_the_other_serves(folder: Path) -> None:
    async with backend(echo) as at, tree(folder) as t:
        number = free_port()
        await t.both(route(number, at))
        frozen = t.living["router.1"]
        for blow in (signal.SIGSTOP, signal.SIGKILL):
            frozen.kill(blow)
            served = 0
            for _ in range(60):
                client = await connect(number)
                client.writer.write(b"x")
                with contextlib.suppress(TimeoutError, OSError):
                    served += await asyncio.wait_for(client.reader.read(1), 0.2) == b"x"
                client.abort()
            # What sat in the stopped worker's hands is lost, nothing else.
            assert served >= 55, (blow, served)


@on_loop
async def test_stop_ends_cleanly_and_health_was_well(folder: Path) -> None:
    async with backend(echo) as at, tree(folder, workers=1) as t:
        number = free_port()
        await t.both(route(number, at))
        client = await connect(number)
        client.writer.write(b"a")
        await asyncio.wait_for(client.reader.readexactly(1), 5)
        worker = t.living["router.0"]
        await heard_until(t, lambda e: isinstance(e, HealthChanged) and e.component == "router.0", "its health is told")
        worker.link.send({"t": "STOP", "seconds": 2})
        assert await asyncio.wait_for(client.was_reset(), 3)
        await until(lambda: worker.process.poll() is not None, "it ends")
        assert worker.process.returncode == 0, worker.log
        assert worker.status[0] == "OK"
        await client.close()


@on_loop
async def test_an_orphan_does_not_go_on(folder: Path) -> None:
    async with tree(folder, workers=1) as t:
        worker = t.living["router.0"]
        asyncio.get_running_loop().remove_reader(worker.link.fileno())
        worker.link.sock.shutdown(socket.SHUT_RDWR)
        await until(lambda: worker.process.poll() is not None, "it ends")
        assert worker.process.returncode == 70

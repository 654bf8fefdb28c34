"""Ports that are opened, shut, refused and tried again, with sockets that somebody else keeps."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from piccolod.errors import Busy
from services.router.doors import Doors
from services.router.flow import Port
from services.router.relay import Relay
from services.router.route import Listener, Mode, Target

from .harness import LIMITS, Client, backend, echo, listening, on_loop, until


class Keeper:
    """Keeps listening sockets as the supervisor does: bound once, handed out as often as asked."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int], socket.socket] = {}

    async def listen(self, proto: str, address: str, port: int = 0) -> socket.socket:
        assert proto == "tcp"
        key = address, port
        if key not in self.kept:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if ":" in address:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(key)
                sock.listen(128)
            except OSError as error:
                sock.close()
                raise Busy(f"tcp {address} port {port}: {error.strerror}") from error
            self.kept[key] = sock
        return self.kept[key].dup()

    async def unlisten(self, proto: str, address: str, port: int) -> None:
        if sock := self.kept.pop((address, port), None):
            sock.close()

    def close(self) -> None:
        for sock in self.kept.values():
            sock.close()


class House:
    def __init__(self) -> None:
        self.keeper = Keeper()
        self.relay = Relay(LIMITS, lambda port: port.mode)
        self.relay.attach(asyncio.get_running_loop())
        self.changes = 0
        self.doors = Doors(self.keeper, self.relay, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def port(self, number: int, at: tuple[str, int]) -> Port:
        port = Port("notes", Listener(name="web", public_port=number))
        port.mode = Mode.LOCAL
        port.target = Target(listener="web", address=at[0], port=at[1])
        return port


@contextlib.asynccontextmanager
async def house() -> AsyncIterator[House]:
    made = House()
    try:
        yield made
    finally:
        made.relay.close()
        made.keeper.close()


def free_port() -> int:
    with listening() as sock:
        number: int = sock.getsockname()[1]
        return number


@on_loop
async def test_a_wanted_port_answers_on_every_address_of_the_node() -> None:
    async with backend(echo) as at, house() as h:
        number = free_port()
        h.doors.want({number: h.port(number, at)})
        await h.doors.settle()
        assert number in h.doors._open
        for address in ("127.0.0.1", "127.1.2.3", "::1"):
            client = Client(*await asyncio.open_connection(address, number))
            assert await client.ask(b"hello") == b"hello"
            await client.close()


@on_loop
async def test_a_port_that_is_not_wanted_any_more_refuses() -> None:
    async with backend(echo) as at, house() as h:
        number = free_port()
        h.doors.want({number: h.port(number, at)})
        await h.doors.settle()
        h.doors.want({})
        await h.doors.settle()
        assert not h.keeper.kept
        with contextlib.suppress(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", number)
            raise AssertionError("it still listens")


@on_loop
async def test_a_port_of_another_program_is_named_stops_no_other_and_is_had_when_it_is_free() -> None:
    async with backend(echo) as at, house() as h:
        with listening() as foreign:
            taken, free = foreign.getsockname()[1], free_port()
            h.doors.want({number: h.port(number, at) for number in (taken, free)})
            await h.doors.settle()
            assert free in h.doors._open
            assert taken not in h.doors._open
            assert f"port {taken} cannot be opened" in h.doors.refused[taken]
            assert "Address already in use" in h.doors.refused[taken]
            trying = asyncio.create_task(h.doors.keep_trying())
        try:
            await until(lambda: taken in h.doors._open, "the port is had")
            assert h.doors.refused == {}
            assert h.changes == 1
            client = Client(*await asyncio.open_connection("127.0.0.1", taken))
            assert await client.ask(b"mine") == b"mine"
            await client.close()
        finally:
            trying.cancel()


@on_loop
async def test_a_taken_port_that_is_not_wanted_any_more_is_forgotten() -> None:
    async with house() as h:
        with listening() as foreign:
            taken = foreign.getsockname()[1]
            h.doors.want({taken: h.port(taken, ("127.0.0.1", 1))})
            await h.doors.settle()
            assert taken in h.doors.refused
            h.doors.want({})
            await h.doors.settle()
            assert h.doors.refused == {}


@on_loop
async def test_another_listener_takes_over_a_port_number() -> None:
    async with backend(echo) as at, house() as h:
        number = free_port()
        h.doors.want({number: h.port(number, ("127.0.0.1", 1))})
        await h.doors.settle()
        h.doors.want({number: h.port(number, at)})
        await h.doors.settle()
        client = Client(*await asyncio.open_connection("127.0.0.1", number))
        assert await client.ask(b"new") == b"new"
        await client.close()

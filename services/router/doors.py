"""The public ports that are open here, made equal to those that the routes want.

The supervisor binds and keeps the sockets, so that a restart of this module refuses nobody. A port that another program
holds is named and tried again; it never stops the others.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from piccolod.errors import PiccoloError
from services.router.flow import Door, Port
from services.router.relay import Relay

ANY_V4: Final = "0.0.0.0"  # noqa: S104 - every address of the node serves every app
ANY_V6: Final = "::"
RETRY_S: Final = 0.5


class Listening(Protocol):
    """The part of a module that opens sockets."""

    async def listen(self, proto: str, address: str, port: int = 0) -> socket.socket: ...

    async def unlisten(self, proto: str, address: str, port: int) -> None: ...


class Doors:
    """Level-triggered: `want` says what should be, `settle` makes it so, in one task at a time."""

    def __init__(self, module: Listening, relay: Relay, on_change: Callable[[], None]) -> None:
        self._module = module
        self._relay = relay
        self._on_change = on_change
        self._wanted: dict[int, Port] = {}
        self._open: dict[int, tuple[Port, list[Door]]] = {}
        self._refused: dict[int, str] = {}
        self._settling = asyncio.Lock()
        self._v6 = Path("/proc/net/if_inet6").exists()

    @property
    def refused(self) -> dict[int, str]:
        """Why a wanted port is not open."""
        return self._refused

    def want(self, wanted: dict[int, Port]) -> None:
        self._wanted = wanted

    async def settle(self) -> None:
        """Opens what is wanted, shuts what is not. Ports that cannot be had are in `refused` afterwards."""
        async with self._settling:
            for number in [number for number, (port, _) in self._open.items() if self._wanted.get(number) is not port]:
                await self._shut(number)
            for number in [number for number in self._refused if number not in self._wanted]:
                del self._refused[number]
            missing = [(number, port) for number, port in self._wanted.items() if number not in self._open]
            await asyncio.gather(*(self._open_port(number, port) for number, port in missing))

    async def keep_trying(self) -> None:
        """Ports that were refused, again and again: their holder may end at any time."""
        while True:
            await asyncio.sleep(RETRY_S)
            if self._refused:
                before = dict(self._refused)
                await self.settle()
                if before != self._refused:
                    self._on_change()

    async def _open_port(self, number: int, port: Port) -> None:
        try:
            sockets = [await self._module.listen("tcp", ANY_V4, number)]
        except PiccoloError as error:
            self._refused[number] = f"port {number} cannot be opened: {error.detail}"
            return
        if self._v6:
            # A node whose IPv6 is off, or a port that is taken there alone, still serves over IPv4.
            try:
                sockets.append(await self._module.listen("tcp", ANY_V6, number))
            except PiccoloError:
                pass
        self._refused.pop(number, None)
        self._open[number] = port, [self._relay.open(port, sock) for sock in sockets]

    async def _shut(self, number: int) -> None:
        _, doors = self._open.pop(number)
        for door in doors:
            self._relay.shut(door)
        for door in doors:
            address = ANY_V6 if door.sock.family == socket.AF_INET6 else ANY_V4
            await self._module.unlisten("tcp", address, number)

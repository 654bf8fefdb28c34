"""How apps puts a container under guard before its first instruction, and takes it out after its proven end."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from piccolod.errors import Busy, Failed, Unavailable
from piccolod.leadership import leash_table
from piccolod.leadership.leash_probe import LEASHES
from piccolod.leadership.leash_table import Entry
from piccolod.paths import Paths

# A living leash answers within a guard tick, even one that is killing; the supervisor replaces a silent one after 1 s.
_ANSWER_S: Final = 1.0


class LeashClient:
    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    async def arm(self, entry: Entry) -> None:
        """Returns when the entry is synced and both leashes hold it. Only then may the container run.

        Raises Unavailable with fewer than two leashes; the entry stays, and so whatever guard lives guards it. Raises Busy
        while an earlier run of the same container is not proven dead.
        """
        table = self._paths.leash
        earlier = await asyncio.to_thread(leash_table.read_entry, table / entry.file)
        if earlier not in (None, entry) and not await asyncio.to_thread(leash_table.replaces, entry, earlier):
            raise Busy(f"container {entry.container} still runs under epoch {earlier.epoch}", hint="stop it first")
        await asyncio.to_thread(leash_table.write, table, entry)
        answers = await self._ask_all(f"ARM {entry.file}")
        if (alive := answers.count("ACK")) < LEASHES:
            raise Unavailable(
                f"{entry.resource} is not started: {alive} of {LEASHES} leashes guard its container",
                hint="see `piccoloctl modules`; it starts by itself once both run",
            )

    async def disarm(self, entry: Entry) -> None:
        """Takes the entry out. Raises Failed, and leaves all as it is, unless the container is proven dead."""
        dead = await asyncio.to_thread(leash_table.proven_dead, entry)
        if not dead or "ALIVE" in await self._ask_all(f"DISARM {entry.file}"):
            raise Failed(f"container {entry.container} of {entry.resource} is not proven dead", hint="it is not fenced")
        await asyncio.to_thread(leash_table.remove, self._paths.leash, entry)

    async def guards(self) -> int:
        """How many leashes answer now."""
        return sum(answer.startswith("PONG") for answer in await self._ask_all("PING"))

    async def _ask_all(self, message: str) -> list[str]:
        return await asyncio.gather(*(self._ask(index, message) for index in range(LEASHES)))

    async def _ask(self, index: int, message: str) -> str:
        """The leash's answer; empty from one that is dead, frozen or not there."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.setblocking(False)
            try:
                async with asyncio.timeout(_ANSWER_S):
                    await loop.sock_connect(link, str(self._paths.leash_socket(index)))
                    await loop.sock_sendall(link, message.encode())
                    return (await loop.sock_recv(link, 512)).decode(errors="replace")
            except (OSError, TimeoutError):
                return ""

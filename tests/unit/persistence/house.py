"""A broker, consensus and persistence as real processes, with this process as their supervisor and as one more module."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from piccolod.leadership import page
from piccolod.link import Link, LinkClosed, Message
from piccolod.module import Module, await_start
from piccolod.protocol.persistence import Commit, Committed, CryptoStatus, Expect, Setup, Unlock, Write
from piccolod.pulse import FD, PulseReader
from tests.unit.bus.nursery import Nursery

PERSISTENCE = "services.persistence.__main__:main"

PASSWORD = "correct horse battery"

MADE = 1  # the rev of the cluster's certificate authority, which the setup makes


class House(Nursery):
    """Keeps deposits as the supervisor does, and what persistence told it."""

    def __init__(self, folder: Path, entry: str = PERSISTENCE) -> None:
        """`entry` is what persistence starts with."""
        super().__init__(folder)
        self._entry = entry
        page.create(self.paths.page)
        self.deposits: dict[str, int] = {}
        self.told: list[Message] = []

    def begin(self) -> None:
        self.start("broker", "broker.__main__:main")
        self.await_message("broker", "READY")
        self.start("consensus", "services.consensus.__main__:main")
        self.await_message("consensus", "READY")
        self.start("persistence", self._entry)
        self.await_message("persistence", "READY")

    def admit(self, name: str, pid: int, link: Link) -> None:
        if name != "persistence":
            super().admit(name, pid, link)
            return
        self._lives += 1
        inst = f"{name}-{self._lives}"
        self.peers[name] = (pid, inst)
        for other in list(self.links.values()):
            with contextlib.suppress(LinkClosed):
                other.send({"t": "PEERS", "peers": self.peers})
        self.links[name] = link
        pulse = PulseReader()
        start = {
            "t": "START", "module": name, "inst": inst, "config": dataclasses.asdict(self.config), "peers": self.peers,
            "fds": [FD, "command", *(f"key:{deposit}" for deposit in self.deposits)],
        }  # fmt: skip
        link.send(start, (pulse.fd, self._listener(self.paths.command_socket(name)), *self.deposits.values()))
        pulse.close()

    def pump(self) -> None:
        """Obeys persistence as the supervisor does."""
        link = self.links.get("persistence")
        if link is None:
            return
        try:
            while (got := link.receive()) is not None:
                message, fds = got
                self.told.append(message)
                if message["t"] == "DEPOSIT":
                    self._forget(message["name"])
                    self.deposits[message["name"]] = fds[0]
                elif message["t"] == "LOCK":
                    for name in list(self.deposits):
                        self._forget(name)
                if message["t"] in ("DEPOSIT", "LOCK"):
                    link.send({"t": "DONE", "id": message["id"], "error": ""})
        except LinkClosed:
            return

    def _forget(self, name: str) -> None:
        if name in self.deposits:
            os.close(self.deposits.pop(name))

    def replace_persistence(self, *, kill: bool = True) -> None:
        """Kills persistence, or waits for its own end, and starts the next one, as the supervisor does."""
        if kill:
            self.kill("persistence")
        else:
            self.children.pop("persistence").wait(10)
        self.revive_persistence()

    def revive_persistence(self) -> None:
        """Starts the next one after one that has ended, and was reaped."""
        self.pump()
        self.links.pop("persistence").close()
        self.start("persistence", self._entry)

    def close(self) -> None:
        super().close()
        for name in list(self.deposits):
            self._forget(name)


@asynccontextmanager
async def member(house: House, name: str = "api") -> AsyncIterator[Module]:
    """This very process as the module `name`, while the house is looked after."""
    link, theirs = Link.pair()
    house.admit(name, os.getpid(), link)
    ours = Link(theirs)
    start, fds = await_start(ours)
    async with asyncio.TaskGroup() as tasks:
        module = Module(ours, start, fds, tasks)
        module.open()
        pump = tasks.create_task(_pump_all(house))
        try:
            yield module
        finally:
            pump.cancel()
            module.close()
            ours.close()
            house.links.pop(name).close()


async def _pump_all(house: House) -> None:
    while True:
        house.pump()
        await asyncio.sleep(0.002)


async def until(condition: Callable[[], Any], what: str, within_s: float = 10.0) -> None:
    give_up_at = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.005)


H = TypeVar("H", bound=House)


@contextmanager
def begun(make: Callable[[Path], H]) -> Iterator[H]:
    with tempfile.TemporaryDirectory(prefix="pers") as folder:
        house = make(Path(folder))
        try:
            house.begin()
            yield house
        finally:
            house.close()


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(**houses: House) -> None:
        asyncio.run(test(**houses))  # type: ignore[arg-type]

    return run


# --- what tests ask of it


def write(id: str, body: dict[str, Any] | None, generation: int | None = None) -> Commit:
    expect = () if generation is None else (Expect(collection="settings", id=id, generation=generation),)
    return Commit(writes=(Write(collection="settings", id=id, body=body),), expect=expect, author="admin")


async def set_up(api: Module) -> CryptoStatus:
    return await api.call(Setup(password=PASSWORD), timeout_s=20)


async def unlock(api: Module, password: str = PASSWORD, source: str = "test") -> CryptoStatus:
    return await api.call(Unlock(password=password, source=source), timeout_s=20)


async def replaced(house: House, api: Module, *, kill: bool = True) -> None:
    """The next persistence, known to `api`."""
    await asyncio.to_thread(house.replace_persistence, kill=kill)
    await until(lambda: api.peers.instance("persistence") == house.peers["persistence"][1], "the new one is known")


async def commit(api: Module, request: Commit, idem: str = "") -> int:
    reply: Committed = await api.call(request, idem=idem)
    return reply.rev

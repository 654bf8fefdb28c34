"""Both workers of the router as real processes, with this test in the place of the supervisor, of apps and of the broker."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq

from piccolod import clock
from piccolod.bus.client import CommandClient
from piccolod.bus.peers import Peers
from piccolod.config import Cluster, Config, Node
from piccolod.leadership import page as deadline_page
from piccolod.link import Link, LinkClosed, Message
from piccolod.protocol.base import Request
from piccolod.protocol.events import HealthChanged, RouteChanged
from piccolod.pulse import FD, PulseReader

from .harness import until

ROOT = Path(__file__).resolve().parents[3]
RUN = (
    "import sys, socket; from piccolod.link import Link; from services.router.__main__ import main; "
    "main(Link(socket.socket(fileno=int(sys.argv[1]))))"
)
R = TypeVar("R")


class Worker:
    """A process that has imported everything and waits for START, as one that the zygote forked."""

    def __init__(self, tree: Tree, name: str) -> None:
        self.tree, self.name = tree, name
        self.inst = f"{name}-{os.urandom(4).hex()}"
        self.ready = asyncio.Event()
        self.status = ("", "")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link = Link(ours)
        with open(tree.folder / f"{self.inst}.log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        theirs.close()
        asyncio.get_running_loop().add_reader(ours.fileno(), self._read)

    def start(self) -> None:
        self.tree.living[self.name] = self
        self.tree.tell_peers()
        config = dataclasses.asdict(self.tree.config)
        pulse = PulseReader()
        self.link.send(
            {
                "t": "START",
                "module": self.name,
                "inst": self.inst,
                "config": config,
                "peers": self.tree.table(),
                "fds": [FD, "command"],
                "wake": [],
            },
            (pulse.fd, self.tree.command[self.name].fileno()),
        )
        pulse.close()

    def kill(self, how: int = signal.SIGKILL) -> None:
        self.process.send_signal(how)

    def end(self) -> None:
        asyncio.get_running_loop().remove_reader(self.link.fileno())
        self.link.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def waits_for_start(self) -> bool:
        """Everything is imported: the process sleeps in its wait for START."""
        return "poll" in (where := Path(f"/proc/{self.process.pid}/wchan").read_text()) or "select" in where

    @property
    def log(self) -> str:
        return (self.tree.folder / f"{self.inst}.log").read_text()

    def _read(self) -> None:
        try:
            while (got := self.link.receive()) is not None:
                self._take(got[0])
        except LinkClosed:
            asyncio.get_running_loop().remove_reader(self.link.fileno())

    def _take(self, message: Message) -> None:
        kind = message["t"]
        if kind == "READY":
            self.ready.set()
        elif kind == "STATUS":
            self.status = message["level"], message["reason"]
        elif kind == "LISTEN":
            self._listen(message)
        elif kind == "UNLISTEN" and (sock := self.tree.kept.pop((message["address"], message["port"]), None)):
            sock.close()

    def _listen(self, message: Message) -> None:
        key = message["address"], message["port"]
        try:
            sock = self.tree.kept.get(key) or bound(*key)
        except OSError as error:
            self.link.send({"t": "DONE", "id": message["id"], "error": f"tcp {key[0]} port {key[1]}: {error.strerror}"})
            return
        self.tree.kept[key] = sock
        self.link.send({"t": "DONE", "id": message["id"], "error": ""}, (sock.fileno(),))


def bound(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in address:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(1024)
    except OSError:
        sock.close()
        raise
    return sock


class Tree:
    def __init__(self, folder: Path, name: str = "n1", peer_port: int = 7443) -> None:
        self.folder = folder
        self.config = Config(
            node=Node(name=name, state_dir=str(folder / "s"), run_dir=str(folder / "r")), cluster=Cluster(peer_port=peer_port)
        )
        self.paths = self.config.paths
        self.paths.bus.mkdir(parents=True)
        self.kept: dict[tuple[str, int], socket.socket] = {}
        self.living: dict[str, Worker] = {}
        self.command = {name: unix_listener(self.paths.command_socket(name)) for name in ("router.0", "router.1")}
        deadline_page.create(self.paths.page)
        self.page = deadline_page.PageWriter(self.paths.page)
        self.lead("app:notes")
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.bus = self.context.socket(zmq.SUB)
        self.bus.bind(f"ipc://{self.paths.bus_publish}")
        self.bus.subscribe(b"")
        self.peers = Peers()
        self.client = CommandClient(self.context, self.paths, "apps", "apps-1", self.peers)
        self.tell_peers()

    def lead(self, *resources: str, token: int = 9, epoch: int = 4) -> None:
        terms = {resource: deadline_page.Term(token, epoch) for resource in resources}
        self.page.write(deadline_page.Page(0, 1, 1, 0, clock.boot_id(), clock.FOREVER, clock.FOREVER, terms))

    def table(self) -> dict[str, Any]:
        return {"apps": [os.getpid(), "apps-1"]} | {name: [w.process.pid, w.inst] for name, w in self.living.items()}

    def tell_peers(self) -> None:
        for worker in self.living.values():
            with contextlib.suppress(LinkClosed):
                worker.link.send({"t": "PEERS", "peers": self.table()})
        self.peers.learn(self.table())

    async def call(self, request: Request[R], target: str = "router.0") -> R:
        return await self.client.call(request, timeout_s=5, target=target)

    async def both(self, request: Request[R]) -> list[R]:
        return [await self.call(request, name) for name in self.living]

    def heard(self) -> list[RouteChanged | HealthChanged]:
        """What was published since the last time."""
        events: list[RouteChanged | HealthChanged] = []
        while True:
            try:
                topic, _, body = self.bus.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return events
            kind = RouteChanged if topic.startswith(b"RouteChanged/") else HealthChanged
            events.append(msgspec.msgpack.decode(body, type=kind))

    def close(self) -> None:
        for worker in self.living.values():
            worker.end()
        self.client.close()
        self.bus.close(linger=0)
        self.context.destroy(linger=0)
        self.page.close()
        for sock in (*self.kept.values(), *self.command.values()):
            sock.close()


def unix_listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(64)
    return sock


@contextlib.asynccontextmanager
async def tree(folder: Path, workers: int = 2, **more: Any) -> AsyncIterator[Tree]:
    """`more`: its name and its peer port."""
    made = Tree(folder, **more)
    try:
        for index in range(workers):
            Worker(made, f"router.{index}").start()
        for worker in made.living.values():
            await asyncio.wait_for(worker.ready.wait(), 15)
        yield made
    finally:
        made.close()


async def heard_until(made: Tree, wanted: Any, what: str) -> list[RouteChanged | HealthChanged]:
    """Collects events until one satisfies `wanted`."""
    seen: list[RouteChanged | HealthChanged] = []

    def look() -> bool:
        seen.extend(made.heard())
        return any(wanted(event) for event in seen)

    await until(look, what)
    return seen

"""Consensus of members of a cluster: the real service on real etcd, the bus played by the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest

from piccolod import clock, cluster_mode, config, etcd_conf
from piccolod.cluster_mode import Mode
from piccolod.errors import Busy, NoLeader, NotLeader, StoreUnavailable
from piccolod.leadership.gate import Gate
from piccolod.leadership.page import Page, PageReader, PageWriter, create
from piccolod.leadership.placement import Standing
from piccolod.leadership.resources import app_of
from piccolod.protocol.base import Event, Level, Request
from piccolod.protocol.cluster import KnownMember
from piccolod.protocol.consensus import Campaign, Stand, Term
from piccolod.protocol.events import ControlRevChanged, LeadershipRoleChanged, NodeStateChanged
from piccolod.protocol.log import Drain, Drained
from piccolod.supervisor.rundir import RunDir
from services.consensus import members_file, seed
from services.consensus.cluster_records import prefix
from services.consensus.etcd_leaser import EtcdLeaser
from services.consensus.service import Service
from tests.etcd import Cluster
from tests.node import until
from tests.unit.consensus.etcd.conftest import eventually, opened

TICK_S = 0.05
# Of the profile fast: L 3.0 s and a bit; a claim comes within a few commits after that.
SPAN_S = 3.0
GEN = 7
ROOT = Path(__file__).parents[4]


class Module:
    """Stands for the bus and the supervisor: handlers are called directly, `persistence.drain` is answered."""

    def __init__(self, node: Node, tasks: asyncio.TaskGroup) -> None:
        self.config = node.config
        self.paths = node.config.paths
        self.log = node.log
        self.published: list[Event] = []
        self.stop_all = False
        self.healths: list[tuple[Level, str]] = []
        self.handlers: dict[type, Callable[..., Awaitable[Any]]] = {}
        self.callbacks: dict[type, Callable[[Any], None]] = {}
        self.calls: list[Request[Any]] = []
        self.drain: Callable[[], Awaitable[Drained]] = self._drained
        self.peers = SimpleNamespace(instance=lambda _name: "p1")
        self._tasks = tasks
        self._spawned: set[asyncio.Task[None]] = set()

    def serve(self, kind: type, handler: Callable[..., Awaitable[Any]]) -> None:
        self.handlers[kind] = handler

    def on(self, kind: type, callback: Callable[[Any], None], key: str | None = None) -> None:
        self.callbacks[kind] = callback

    def publish(self, event: Event) -> None:
        self.published.append(event)

    def health(self, level: Level, reason: str = "", role: str = "") -> None:
        self.healths.append((level, reason))

    def spawn(self, work: Any, *, name: str) -> asyncio.Task[None]:
        task = self._tasks.create_task(work, name=name)
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)
        return task

    def end(self) -> None:
        for task in self._spawned:
            task.cancel()

    async def call(self, request: Request[Any], *, timeout_s: float = 5.0) -> Any:
        self.calls.append(request)
        assert isinstance(request, Drain)
        return await self.drain()

    async def ask(self, request: Request[Any], caller: str = "persistence") -> Any:
        return await self.handlers[type(request)](request, SimpleNamespace(module=caller))

    @staticmethod
    async def _drained() -> Drained:
        return Drained(rev=0, digest=b"")


class Node:
    """One node's folders and page, and a supervisor that ticks while it is told to."""

    def __init__(self, folder: Path, index: int, extra_config: str = "") -> None:
        self.folder, self.index, self.name = folder, index, f"n{index + 1}"
        self.configure(extra_config)
        self.paths = self.config.paths
        self.log: Any = SimpleNamespace(info=self._say, warning=self._say, error=self._say, debug=self._say)
        self.said: list[tuple[str, dict[str, Any]]] = []
        self._reader = PageReader(self.paths.page)
        self.gate = Gate(self._reader)

    def configure(self, extra: str) -> None:
        self.config = config.parse(
            f'[node]\nname = "{self.name}"\naddress = "10.77.0.{self.index + 1}"\n'
            f'state_dir = "{self.folder}/state"\nrun_dir = "{self.folder}/run"\n{extra}'
        )

    def make(self, cluster: str, etcd: Cluster) -> KnownMember:
        """What `cluster init` or `cluster join` leaves of it."""
        address = self.config.node.address
        rpc, api_url = f"{address}:7444", f"http://{address}:8080"
        paths = self.paths
        for folder in (paths.state, paths.run, paths.leash):
            folder.mkdir(parents=True)
        create(paths.page)
        cluster_mode.make_folder(paths.cluster)
        (paths.cluster / "timing.json").write_text('{"profile": "fast", "stop_s": 0.1}')
        if self.config.etcd.is_external:
            cluster_mode.enter(paths.cluster, Mode(cluster=cluster, node=self.name, since_ms=1, etcd="external", rpc=rpc))
            return KnownMember(address=address, client_url="", rpc=rpc, api_url=api_url)
        own = etcd.members[self.index % len(etcd.members)].settings
        etcd_conf.write(own, paths.etcd_conf)
        others = {
            each.settings.name: KnownMember(address="", client_url=each.settings.client_url, rpc="") for each in etcd.members
        }
        members_file.write(paths, others)
        cluster_mode.enter(paths.cluster, Mode(cluster=cluster, node=self.name, since_ms=1))
        return KnownMember(address=address, client_url=own.client_url, rpc=rpc, api_url=api_url)

    def _say(self, event: str, **facts: Any) -> None:
        self.said.append((event, facts))

    def page(self) -> Any:
        page = self._reader.read()
        assert page is not None
        return page

    def reboot(self) -> None:
        """Its supervisor makes the page anew."""
        writer = PageWriter(self.paths.page)
        writer.write(Page(0, 0, 0, 0, clock.boot_id(), 0.0, 0.0, {}))
        writer.close()

    def token(self, resource: str = "kernel") -> int:
        """Of the open term; 0 behind a shut gate."""
        return self.gate.check(resource).token if self.gate.holds(resource) else 0

    def has_takers(self) -> bool:
        """Only those that a leader has acknowledged may take over: then its deadline runs."""
        return bool(self.page().hard_at < clock.FOREVER)


class Live:
    """A node while its consensus runs in this process."""

    def __init__(self, node: Node, module: Module, service: Service) -> None:
        self.node = node
        self.module = module
        self.service = service
        self.asking = True  # whether persistence asks to lead the kernel
        self.ticking = True  # whether its supervisor acts
        self.stands: dict[str, Standing] = {}  # to apps, as its module of that name says

    @property
    def leaser(self) -> EtcdLeaser:
        leaser = self.service._leaser
        assert isinstance(leaser, EtcdLeaser)
        return leaser

    async def ask(self, request: Request[Any], caller: str = "persistence") -> Any:
        if isinstance(request, Campaign) and (mode := cluster_mode.load(self.node.paths.cluster)) is not None:
            request = msgspec.structs.replace(request, cluster=mode.cluster)
        return await self.module.ask(request, caller)

    async def lead(self, resource: str = "kernel", within_s: float = 8.0) -> Term:
        """Campaigns until it leads."""

        app = app_of(resource)

        async def campaign() -> Term | None:
            if app is not None:
                self.stands[app] = Standing()
                await self.ask(Stand(apps=self.stands), "apps")
            with contextlib.suppress(NoLeader, NotLeader, StoreUnavailable, Busy):
                return await self.ask(Campaign(resource=resource), "persistence" if resource == "kernel" else "apps")
            return None

        return await eventually(campaign, f"{self.node.name} leads {resource}", within_s)

    async def stands_by(self, leader: Live) -> None:
        """Asks for the kernel and is refused, and `leader` knows that this node could lead it."""
        with pytest.raises(NotLeader):
            await self.ask(Campaign(resource="kernel"))
        await is_able(self.node.name, leader)

    async def has_takers(self) -> None:
        await eventually(self.node.has_takers, "its taker is acknowledged")

    async def in_session(self) -> int:
        """Its sid."""
        return await eventually(lambda: self.node.page().sid, f"{self.node.name} is in session")

    def roles(self, resource: str = "kernel") -> list[tuple[str, str, int]]:
        events = [event for event in self.module.published if isinstance(event, LeadershipRoleChanged)]
        return [(event.role, event.node, event.epoch) for event in events if event.resource == resource]

    def states(self) -> dict[str, str]:
        """The nodes, as the events say."""
        return {event.node: event.state for event in self.module.published if isinstance(event, NodeStateChanged)}

    def revs(self) -> list[int]:
        return [event.rev for event in self.module.published if isinstance(event, ControlRevChanged)]


class Elected(NamedTuple):
    holder: Node
    others: list[Node]
    process: subprocess.Popen[bytes]
    """Of the holder."""


def holders(nodes: list[Node]) -> list[Node]:
    return [node for node in nodes if node.token()]


async def is_able(node: str, leader: Live) -> None:
    def able() -> bool:
        return any(each.node == node and each.eligible for each in leader.leaser.candidates("kernel"))

    await eventually(able, f"the leader knows that {node} could lead")


class House:
    """Nodes of one cluster of their own, on members of etcd that many share."""

    def __init__(self, etcd: Cluster, section: str = "") -> None:
        """`section`: `[etcd]` of their configuration."""
        self.etcd, self.section = etcd, section
        self.folder = Path(tempfile.mkdtemp(prefix="house"))
        self.cluster = os.urandom(6).hex()
        self.prefix = prefix(self.cluster)
        self.processes: list[subprocess.Popen[bytes]] = []

    async def begin(self, count: int) -> list[Node]:
        nodes = [Node(self.folder / f"n{index + 1}", index, self.section) for index in range(count)]
        async with opened(self.etcd) as client:
            await seed.put_gen(client, self.prefix, GEN)
            for node in nodes:
                await seed.put_node(client, self.prefix, node.name, node.make(self.cluster, self.etcd))
        return nodes

    @asynccontextmanager
    async def two(self) -> AsyncIterator[tuple[Live, Live]]:
        """Both members of a cluster of two, alive; nobody leads yet."""
        first, second = await self.begin(2)
        async with living(first) as one, living(second) as two:
            yield one, two

    def elected(self, count: int) -> Elected:
        """Members in processes of their own, one of which leads the kernel and could be followed by another."""
        nodes = asyncio.run(self.begin(count))
        processes = {node.name: self.start(node) for node in nodes}
        (holder,) = until(lambda: holders(nodes), "one leads", 15)
        until(holder.has_takers, "its takers are acknowledged", 5)
        return Elected(holder, [node for node in nodes if node is not holder], processes[holder.name])

    def start(self, node: Node) -> subprocess.Popen[bytes]:
        """Its consensus in a process of its own, which asks to lead the kernel."""
        with (node.folder / "output").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.unit.consensus.etcd.process", str(node.folder), str(node.index)],
                cwd=ROOT, stdout=output, stderr=output,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        shutil.rmtree(self.folder)


@contextmanager
def house(etcd: Cluster, section: str = "") -> Iterator[House]:
    made = House(etcd, section)
    try:
        yield made
    finally:
        made.close()


@asynccontextmanager
async def living(node: Node) -> AsyncIterator[Live]:
    """Its consensus runs, its supervisor ticks; at the end consensus is gone as if it had been killed, and ends no term."""
    async with asyncio.TaskGroup() as tasks:
        module = Module(node, tasks)
        service = Service(module)  # type: ignore[arg-type]
        live = Live(node, module, service)
        run_dir = RunDir(node.paths)
        ticks = tasks.create_task(_tick(live, run_dir))
        await service.start()
        try:
            yield live
        finally:
            await service.stop()
            ticks.cancel()
            run_dir.close()
            module.end()


@asynccontextmanager
async def leading(node: Node, heir: Live) -> AsyncIterator[Live]:
    """As `living`; it leads the kernel, and knows that `heir` could."""
    async with living(node) as live:
        await live.lead()
        await heir.stands_by(live)
        yield live


async def _tick(live: Live, run_dir: RunDir) -> None:
    while True:
        if live.ticking:
            run_dir.tick()
        await asyncio.sleep(TICK_S)

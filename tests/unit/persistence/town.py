"""Nodes with the real service of persistence in this process, over a bus that is played and the `Etcd` of etcd_double.py.

What `cluster init` and `cluster join` do to a node is done here by hand: a node that is alone exports its log, and goes on as
the first member; a node with nothing becomes another.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog

from piccolod import clock, cluster_mode, config
from piccolod.cluster_mode import Mode
from piccolod.errors import NotLeader
from piccolod.leadership import page
from piccolod.leadership.page import Page, PageReader, PageWriter, Term
from piccolod.protocol import consensus as asked
from piccolod.protocol.base import Event, Level, Nothing, Request
from piccolod.protocol.consensus import Campaign, Closing, Withdraw
from piccolod.protocol.events import ControlRevChanged, ControlStoreCommit, LeadershipRoleChanged
from piccolod.protocol.log import Append, ExportLog
from piccolod.protocol.persistence import Commit, Document, GetRevision, Read, Revision, Setup, Unlock, Write
from piccolod.protocol.unlocking import GrantUnlock
from services.persistence.service import Service

from .etcd_double import GEN, Consensus, Etcd
from .house import PASSWORD, until


class Module:
    """The bus and the supervisor as one service sees them. Its deposits outlive it, as the supervisor keeps them."""

    def __init__(self, node: Node) -> None:
        self.name = "persistence"
        self.node = node
        self.config = node.config
        self.paths = node.config.paths
        self.log = structlog.get_logger().bind(node=node.name)
        self.stopping = asyncio.Event()
        self.handlers: dict[type, Callable[..., Awaitable[Any]]] = {}
        self.callbacks: dict[type, list[Callable[[Any], None]]] = defaultdict(list)
        self.published: list[Event] = []
        self.healths: list[tuple[Level, str]] = []
        self.verified: list[tuple[int, bool]] = []
        self.tasks: set[asyncio.Task[None]] = set()

    def serve(self, kind: type, handler: Callable[..., Awaitable[Any]]) -> None:
        self.handlers[kind] = handler

    def on(self, kind: type, callback: Callable[[Any], None], key: str | None = None) -> None:
        self.callbacks[kind].append(callback)

    def on_resync(self, callback: Callable[[], None]) -> None: ...

    def publish(self, event: Event) -> None:
        self.published.append(event)

    def health(self, level: Level, reason: str = "", role: str = "") -> None:
        self.healths.append((level, reason))

    def spawn(self, work: Any, *, name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.node.failures.append(task.exception())

    async def call(self, request: Request[Any], *, timeout_s: float = 5.0) -> Any:
        return await self.node.consensus_does(request, timeout_s)

    def deposited(self, name: str) -> bytes | None:
        return self.node.deposits.get(name)

    async def deposit(self, name: str, secret: bytes) -> None:
        self.node.deposits[name] = secret

    async def drop_deposits(self) -> None:
        self.node.deposits.clear()

    def report_verified(self, rev: int, collections: tuple[str, ...], leader: bool) -> None:
        self.verified.append((rev, leader))


class Node:
    """One machine. `begin` and `end` are the lives of its persistence."""

    def __init__(self, town: Town, name: str) -> None:
        self.town, self.name = town, name
        folder = town.folder / name
        self.config = config.parse(
            f'[node]\nname = "{name}"\naddress = "10.0.0.{name[1:]}"\nstate_dir = "{folder}/state"\nrun_dir = "{folder}/run"'
        )
        self.paths = self.config.paths
        self.paths.run.mkdir(parents=True)
        self.paths.state.mkdir(parents=True)
        page.create(self.paths.page)
        self.writer = PageWriter(self.paths.page)
        self.reader = PageReader(self.paths.page)
        self.deposits: dict[str, bytes] = {}
        self.failures: list[BaseException | None] = []
        self.consensus = Consensus(town.etcd, name)
        self.withdrawn: list[str] = []
        self.hears_hints = True
        self.campaigns = True  # whether consensus grants this node what nobody has
        self.module: Module
        self.service: Service

    # --- lives

    async def begin(self) -> Module:
        self.module = Module(self)
        self.service = Service(self.module)  # type: ignore[arg-type]
        await self.service.start()
        self.tell_role()
        await self.service._vault.opened.wait()
        return self.module

    async def end(self) -> None:
        """As a kill, but for what is under way on the disk."""
        await self.service.stop()
        await self.cut()

    async def cut(self) -> None:
        for task in list(self.module.tasks):
            task.cancel()
        while self.module.tasks:
            await asyncio.wait(list(self.module.tasks))

    async def again(self) -> Module:
        await self.end()
        return await self.begin()

    # --- what others ask of it

    async def ask(self, request: Request[Any], idem: str = "", caller: str = "api") -> Any:
        handler = self.module.handlers[type(request)]
        return await handler(request, SimpleNamespace(module=caller, idem=idem))

    async def put(self, id: str, value: Any, idem: str = "") -> int:
        write = Write(collection="settings", id=id, body={"v": value})
        return (await self.ask(Commit(writes=(write,), author="admin"), idem)).rev

    async def get(self, id: str) -> Any:
        document: Document = await self.ask(Read(collection="settings", id=id))
        return document.body["v"]

    async def revision(self) -> Revision:
        return await self.ask(GetRevision())

    async def unlock(self, password: str = PASSWORD) -> None:
        await self.ask(Unlock(password=password, source="test"))

    @property
    def rev(self) -> int:
        catch_up = self.service._vault.catch_up  # type: ignore[attr-defined]
        return catch_up.end.rev if catch_up is not None else 0

    @property
    def leads(self) -> bool:
        return self.service._gate.holds("kernel")

    async def until_leads(self) -> None:
        await until(lambda: self.leads, f"{self.name} leads")

    async def catches_up(self, rev: int, within_s: float = 10.0) -> None:
        await until(lambda: self.rev == rev, f"{self.name} has rev {rev}", within_s)

    def events(self, kind: type) -> list[Any]:
        return [event for event in self.module.published if isinstance(event, kind)]

    def shown(self) -> list[int]:
        return [event.rev for event in self.events(ControlStoreCommit)]

    # --- its consensus

    async def consensus_does(self, request: Any, timeout_s: float) -> Any:
        match request:
            case Campaign():
                return self._campaign(request)
            case Closing():
                self._show(closing=True)
                return Nothing()
            case Withdraw():
                return self._withdraw(request)
            case GrantUnlock():
                await self.town.grant(request)
                return Nothing()
        before = self.town.etcd.head_rev
        try:
            return await self.consensus.ask(request, timeout_s=timeout_s)
        finally:
            if isinstance(request, Append) and self.town.etcd.head_rev > before:
                self.town.announce()

    def _campaign(self, request: Campaign) -> asked.Term:
        mode = cluster_mode.load(self.paths.cluster)
        assert request.cluster == ("" if mode is None else mode.cluster)
        etcd = self.town.etcd
        if not self.town.founded:
            if not etcd.token:
                etcd.elect(self.name)
        elif etcd.leader != self.name:
            if etcd.leader or not self.campaigns:
                raise NotLeader("another one leads", leader=etcd.hint())
            etcd.elect(self.name)
        self._show()
        self.town.tell_roles()
        return asked.Term(resource="kernel", gen=GEN, epoch=etcd.epoch, token=etcd.token)

    def _withdraw(self, request: Withdraw) -> Nothing:
        if request.token == self.town.etcd.token:
            self.withdrawn.append(request.reason)
            self.town.etcd.release()
        self._clear()
        self.town.tell_roles()
        return Nothing()

    def _show(self, *, closing: bool = False) -> None:
        etcd = self.town.etcd
        self._write({"kernel": Term(etcd.token, etcd.epoch, closing)})

    def _clear(self) -> None:
        self._write({})

    def _write(self, terms: dict[str, Term]) -> None:
        self.writer.write(Page(0, GEN, 1, 0, clock.boot_id(), clock.FOREVER, clock.FOREVER, terms))

    def deposed(self) -> None:
        """Its session ended: the page says so."""
        self._clear()

    def tell_role(self) -> None:
        etcd = self.town.etcd
        role = "leader" if etcd.leader == self.name else "follower" if etcd.leader else "unknown"
        self.hear(
            LeadershipRoleChanged(
                resource="kernel", role=role, node=etcd.leader, address=f"{etcd.leader}.test", epoch=etcd.epoch,
                token=etcd.token, reason="test", url=f"https://{etcd.leader}.test",
            )
        )  # fmt: skip

    def hear(self, event: Event) -> None:
        for callback in self.module.callbacks[type(event)]:
            callback(event)


class Town:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.etcd = Etcd()
        self.nodes: dict[str, Node] = {}
        self.cluster = ""
        self.founded = False
        self.granted: list[GrantUnlock] = []
        self.while_granting: Callable[[], Awaitable[None]] = _nothing

    def node(self, name: str) -> Node:
        self.nodes[name] = Node(self, name)
        return self.nodes[name]

    async def found(self, name: str = "n1", writes: int = 3) -> Node:
        """A node alone with some writes, that becomes the first member and goes on leading."""
        node = self.node(name)
        await node.begin()
        await node.ask(Setup(password=PASSWORD))
        for number in range(writes):
            await node.put(f"old{number}", number)
        self.cluster = node.service._vault.cluster
        await self.move(node)
        await node.end()
        node.deposed()
        self.etcd.release()
        self.etcd.epoch += 1
        self.enter(node)
        self.founded = True
        await node.begin()
        await node.until_leads()
        return node

    async def move(self, node: Node) -> None:
        """The log of a node alone into etcd."""
        after = 0
        while True:
            exported = await node.ask(ExportLog(after=after, limit=2, hold_s=0.0), caller="consensus")
            if after == 0:
                self.etcd.keyset, self.etcd.keyset_mod = exported.keyset, 1
            for entry in exported.entries:
                self.etcd.log[entry.rev] = entry
                after = entry.rev
            if after == exported.head_rev:
                self.etcd.head_rev, self.etcd.head_digest = exported.head_rev, exported.head_digest
                return

    def enter(self, node: Node) -> None:
        cluster_mode.make_folder(node.paths.cluster)
        cluster_mode.enter(node.paths.cluster, Mode(cluster=self.cluster, node=node.name, since_ms=1))

    async def join(self, name: str, *, unlocked: bool = True) -> Node:
        node = self.node(name)
        self.enter(node)
        await node.begin()
        if unlocked:
            await node.unlock()
        return node

    async def locked_follower(self, name: str = "n2") -> Node:
        """One that was never unlocked, and has filed all that there is."""
        node = await self.join(name, unlocked=False)
        await node.catches_up(self.etcd.head_rev)
        return node

    async def grant(self, request: GrantUnlock) -> None:
        """`while_granting` stands for what happens meanwhile, also in etcd."""
        await self.while_granting()
        self.granted.append(request)

    def announce(self) -> None:
        for node in self.nodes.values():
            if node.hears_hints and hasattr(node, "module"):
                node.hear(ControlRevChanged(rev=self.etcd.head_rev))

    def tell_roles(self) -> None:
        for node in self.nodes.values():
            if hasattr(node, "module"):
                node.tell_role()


async def _nothing() -> None: ...


@asynccontextmanager
async def town_in(folder: Path) -> AsyncIterator[Town]:
    town = Town(folder)
    try:
        async with asyncio.timeout(90):
            yield town
    finally:
        for node in town.nodes.values():
            if hasattr(node, "service"):
                await node.end()
            node.writer.close()
    failures = [failure for node in town.nodes.values() for failure in node.failures]
    assert not failures, failures


def in_town(test: Callable[[Town], Awaitable[None]]) -> Callable[[Path], None]:
    """`test(town)` in a loop of its own."""

    def run(tmp_path: Path, cheap_passwords: None) -> None:
        async def work() -> None:
            async with town_in(tmp_path) as town:
                await test(town)

        asyncio.run(work())

    run.__name__ = test.__name__
    return run

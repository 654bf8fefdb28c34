"""Members of one cluster in this process: each with a file, a ledger and a committer of its own, over one `Etcd`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from piccolod.errors import LeaderHint, PiccoloError
from services.persistence.catch_up import CatchUp
from services.persistence.cluster_commit import ClusterCommit
from services.persistence.committer import Committer
from services.persistence.ledger import Folded, Ledger, Write
from services.persistence.local_copy import LocalCopy
from services.persistence.secret import SecretKey
from services.persistence.state import put
from services.persistence.store import Store
from services.persistence.verify import end_of, load

from .conftest import CLUSTER
from .etcd_double import Consensus, Etcd, NodeGate
from .house import until


class Node:
    """One member. `ledger` is there while it is unlocked."""

    def __init__(self, folder: Path, etcd: Etcd, name: str, key: SecretKey) -> None:
        self.name, self.etcd, self.key = name, etcd, key
        self.db = folder / name / "control.db"
        if not self.db.exists():
            Store.create(self.db, CLUSTER)
        self.consensus = Consensus(etcd, name)
        self.gate = NodeGate()
        self.seen: list[Folded] = []
        self.troubles: list[PiccoloError | None] = []
        self.fulls = 0
        self.leader: LeaderHint | None = None
        self.log = structlog.get_logger()
        self.copy = LocalCopy(self.db, *end_of(self.db, CLUSTER), asyncio.ensure_future, self.troubles.append)
        self.catch_up = CatchUp(CLUSTER, self.copy, self.consensus.ask, self.on_commit, self.log)
        self.commits: Committer

    def on_commit(self, folded: Sequence[Folded]) -> None:
        self.seen += folded

    def unlock(self) -> Ledger:
        ledger = Ledger(self.db, self.key, load(self.db, CLUSTER, self.key, whole=False))
        point = ClusterCommit(
            self.name, ledger, self.catch_up, self.consensus.ask, self.gate, self.on_commit, self.on_full, self.log
        )
        self.commits = Committer(
            ledger, point, self.gate, asyncio.ensure_future, self.log, leader=lambda: self.leader, park_s=2.0
        )
        self.catch_up.ledger = ledger
        return ledger

    def on_full(self) -> None:
        self.fulls += 1

    def lead(self) -> None:
        self.gate.token = self.etcd.elect(self.name)

    async def put(self, id: str, value: Any, *, idem: str = "", expect: dict[tuple[str, str], int] | None = None) -> int:
        return (await self.commits.commit(Write([put("apps", id, {"v": value})], expect or {}, "admin", idem, 1))).rev

    async def doubtful(self, id: str, value: Any, *, idem: str = "") -> asyncio.Future[int]:
        """A write that is sent, whose answer is lost, and whose place in the log cannot be read until the test allows it."""
        self.consensus.unknown.append("late, cut off")
        writing = asyncio.ensure_future(self.put(id, value, idem=idem))
        await until(lambda: self.commits._point.in_doubt, "it is in doubt")  # type: ignore[attr-defined]
        return writing

    async def parked(self, id: str, value: Any) -> asyncio.Future[int]:
        """A write that is neither made nor refused for now."""
        writing = asyncio.ensure_future(self.put(id, value))
        await asyncio.wait([writing], timeout=0.1)
        assert not writing.done(), "parked, not refused"
        return writing

    def documents(self) -> dict[tuple[str, str], tuple[int, bytes]]:
        assert self.catch_up.ledger is not None
        return {(c, i): (d.generation, d.body) for c, i, d in self.catch_up.ledger.state.documents()}

    @property
    def rev(self) -> int:
        return self.catch_up.end.rev

    async def close(self) -> None:
        if self.catch_up.ledger is not None:
            await self.commits.close()
        await self.copy.close()


class Members:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.etcd = Etcd()
        self.key = SecretKey.random()
        self.nodes: dict[str, Node] = {}

    def node(self, name: str, *, locked: bool = False) -> Node:
        node = self.nodes[name] = Node(self.folder, self.etcd, name, self.key)
        if not locked:
            node.unlock()
        return node

    def leader(self, name: str = "n1") -> Node:
        node = self.node(name)
        node.lead()
        return node

    async def restarted(self, node: Node) -> Node:
        await node.close()
        return self.node(node.name)


def with_members(folder: Path, work: Callable[[Members], Awaitable[None]]) -> None:
    async def run() -> None:
        members = Members(folder)
        try:
            async with asyncio.timeout(60):
                await work(members)
        finally:
            for node in members.nodes.values():
                await node.close()

    asyncio.run(run())

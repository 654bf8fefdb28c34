"""Seeded storms: leaders change, answers get lost, appends come late, nodes are cut off; and what was acknowledged is there."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from piccolod.errors import NoLeader, NotLeader, OutcomeUnknown, StoreCorrupt, StoreFull, StoreUnavailable
from services.persistence import cluster_commit
from services.persistence.catch_up import as_sealed
from services.persistence.entry import entry_header, open_entry

from .members import Members, Node, with_members

SEEDS = 8
WRITES = 10


class Storm:
    def __init__(self, members: Members, seed: int) -> None:
        self.members = members
        self.random = random.Random(seed)
        self.nodes = [members.node(name) for name in ("n1", "n2", "n3")]
        self.acknowledged: dict[str, int] = {}
        self.over = False
        for node in self.nodes:
            node.commits._park_s = 0.05

    async def writer(self, name: int) -> None:
        """Each write has a key of its own, and is repeated under it at any node until it is acknowledged."""
        for number in range(WRITES):
            id = f"w{name}-{number}"
            while True:
                node = self.random.choice(self.nodes)
                try:
                    self.acknowledged[id] = await node.put(id, number, idem=id)
                    break
                except (NotLeader, NoLeader, OutcomeUnknown, StoreUnavailable, StoreFull, StoreCorrupt):
                    await asyncio.sleep(self.random.uniform(0, 0.01))

    async def weather(self) -> None:
        """Of what happens each moment most is harmless alone."""
        etcd = self.members.etcd
        while not self.over:
            node = self.random.choice(self.nodes)
            match self.random.randrange(9):
                case 0 | 1:
                    node.lead()  # the others' pages still show their terms
                case 2:
                    node.consensus.unknown.append(self.random.choice(["made", "lost", "late"]))
                case 3:
                    node.consensus.unknown.append("late, cut off")
                case 4:
                    node.consensus.arrive()
                case 5:
                    node.consensus.cut_off = not node.consensus.cut_off
                case 6:
                    etcd.down = self.random.random() < 0.2
                case 7:
                    etcd.full = self.random.random() < 0.2
                case 8:
                    await self.look(node)
            await asyncio.sleep(self.random.uniform(0, 0.02))
        etcd.down = etcd.full = False
        for node in self.nodes:
            node.consensus.unknown.clear()
            node.consensus.cut_off = False

    async def clear_sky(self) -> None:
        """Now and then, so that the storm has an end."""
        while not self.over:
            await asyncio.sleep(0.15)
            self.members.etcd.down = self.members.etcd.full = False
            for node in self.nodes:
                node.consensus.cut_off = False
            self.random.choice(self.nodes).lead()

    @staticmethod
    async def look(node: Node) -> None:
        try:
            await node.catch_up.to_head()
        except (StoreUnavailable, StoreCorrupt):
            return

    async def run(self) -> None:
        skies = [asyncio.create_task(self.weather()), asyncio.create_task(self.clear_sky())]
        try:
            await asyncio.gather(*(self.writer(name) for name in range(4)))
        finally:
            self.over = True
            await asyncio.gather(*skies)
        for node in self.nodes:
            node.consensus.arrive()
        for node in self.nodes:
            await node.catch_up.to_head()

    def judge(self) -> None:
        etcd, key = self.members.etcd, self.members.key
        keys_seen: dict[str, int] = {}
        for rev in range(1, etcd.head_rev + 1):
            entry = as_sealed(etcd.log[rev])
            header = entry_header(entry)
            assert header.idem not in keys_seen, f"{header.idem} was written twice: {keys_seen[header.idem]} and {rev}"
            keys_seen[header.idem] = rev
            assert [op.id for op in open_entry(key.cipher, entry)] == [header.idem]
        assert keys_seen == self.acknowledged, "each at the rev that its writer was told, and nothing else"
        first, *others = self.nodes
        for node in others:
            assert node.documents() == first.documents()
            assert (node.rev, node.catch_up.end.digest) == (etcd.head_rev, etcd.head_digest)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_happens_what_was_acknowledged_is_there_once_and_everywhere(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_commit, "RESOLVE_S", 0.1)
    monkeypatch.setattr(cluster_commit, "RESOLVE_PAUSE_S", 0.005)

    async def work(members: Members) -> None:
        storm = Storm(members, seed)
        await storm.run()
        storm.judge()

    with_members(tmp_path, work)

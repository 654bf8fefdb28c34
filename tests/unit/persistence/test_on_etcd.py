"""Members with the real service of persistence and the real consensus, on real etcd."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from piccolod.errors import LeaderHint, NoLeader, NotLeader, OutcomeUnknown, PiccoloError, StoreUnavailable
from piccolod.protocol.base import Event
from piccolod.protocol.consensus import Switchover
from piccolod.protocol.events import ControlStoreCommit
from piccolod.protocol.log import Append, Drain, Drained, ExportLog
from piccolod.protocol.persistence import Commit, Lock, Read, Setup, Unlock, Write
from services.consensus import seed
from services.consensus.cluster_records import prefix
from services.persistence.service import Service
from tests.unit.consensus.etcd.conftest import etcd as etcd
from tests.unit.consensus.etcd.conftest import eventually, opened, put_keyset
from tests.unit.consensus.etcd.conftest import home as home
from tests.unit.consensus.etcd.conftest import three_members as three_members
from tests.unit.consensus.etcd.member import House, Live, Node, is_able, living

from .town import PASSWORD, Module, Town

pytestmark = pytest.mark.skipif(not shutil.which("etcd"), reason="needs etcd")


class Member:
    """A machine: the consensus of `live`, and persistence beside it."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.name = live.node.name
        self.config, self.paths = live.node.config, live.node.paths
        self.deposits: dict[str, bytes] = {}
        self.failures: list[BaseException | None] = []
        self.module = Module(self)  # type: ignore[arg-type]
        self.service = Service(self.module)  # type: ignore[arg-type]

    async def begin(self) -> None:
        heard = list(self.live.module.published)
        publish, told = self.live.module.publish, self.module.publish

        def from_consensus(event: Event) -> None:
            publish(event)
            self._hear(event)

        def from_persistence(event: Event) -> None:
            told(event)
            if isinstance(event, ControlStoreCommit):
                self.live.module.callbacks[ControlStoreCommit](event)

        self.live.module.publish = from_consensus  # type: ignore[method-assign]
        self.live.module.drain = self._drain
        self.module.publish = from_persistence  # type: ignore[method-assign]
        await self.service.start()
        for event in heard:
            self._hear(event)
        await self.service._vault.opened.wait()

    def _hear(self, event: Event) -> None:
        for callback in self.module.callbacks[type(event)]:
            callback(event)

    async def _drain(self) -> Drained:
        return await self.ask(Drain(), "consensus")

    async def consensus_does(self, request: Any, timeout_s: float) -> Any:
        async with asyncio.timeout(timeout_s):
            return await self.live.ask(request)

    async def end(self) -> None:
        await self.service.stop()
        for task in list(self.module.tasks):
            task.cancel()
        while self.module.tasks:
            await asyncio.wait(list(self.module.tasks))

    async def ask(self, request: Any, caller: str = "api", idem: str = "") -> Any:
        return await self.module.handlers[type(request)](request, SimpleNamespace(module=caller, idem=idem))

    async def put(self, id: str, value: Any, idem: str = "") -> int:
        write = Write(collection="settings", id=id, body={"v": value})
        return (await self.ask(Commit(writes=(write,), author="admin"), idem=idem)).rev

    async def get(self, id: str) -> Any:
        return (await self.ask(Read(collection="settings", id=id))).body["v"]

    @property
    def rev(self) -> int:
        return self.service._membership.vault.catch_up.end.rev  # type: ignore[union-attr]

    @property
    def leads(self) -> bool:
        return self.live.node.gate.holds("kernel") and self.service._vault.store is not None


async def moved_to(home: House, nodes: list[Node], folder: Path) -> None:
    """A node alone with a few writes becomes the first of `nodes`: what `cluster init` does with its log."""
    town = Town(folder)
    alone = town.node("n1")
    await alone.begin()
    await alone.ask(Setup(password=PASSWORD))
    await alone.put("old", 1)
    exported = await alone.ask(ExportLog(after=0), caller="consensus")
    await alone.end()
    alone.writer.close()
    home.cluster, home.prefix = exported.cluster, prefix(exported.cluster)
    made = await home.begin(3)
    nodes += made
    async with opened(home.etcd) as client:
        await seed.put_log(client, home.prefix, exported.gen, exported.entries)
        await put_keyset(client, home.prefix, exported.keyset)
    shutil.copytree(alone.paths.store, made[0].paths.store)


@asynccontextmanager
async def members(home: House, folder: Path) -> AsyncIterator[list[Member]]:
    """Three, all unlocked; the first one leads."""
    nodes: list[Node] = []
    await moved_to(home, nodes, folder)
    async with AsyncExitStack() as stack:
        made = []
        for node in nodes:
            live = await stack.enter_async_context(living(node))
            member = Member(live)
            await member.begin()
            stack.push_async_callback(member.end)
            made.append(member)
            await member.ask(Unlock(password=PASSWORD, source="test"))
            if len(made) == 1:
                await eventually(lambda member=member: member.leads, "the first one leads")
        yield made
    assert not [failure for member in made for failure in member.failures]


async def patiently(made: list[Member], id: str, value: Any, at: Member) -> tuple[Member, int]:
    """As a client does: with a key of its own, after every hint. Where it was written, and its rev."""
    give_up_at = time.monotonic() + 10
    while True:
        try:
            return at, await at.put(id, value, idem=f"{id}-{value}")
        except NotLeader as error:
            hinted = error.leader.node if error.leader is not None else ""
            at = next((member for member in made if member.name == hinted), at)  # a hint may name one that is dead
        except (NoLeader, StoreUnavailable, OutcomeUnknown):
            at = made[(made.index(at) + 1) % len(made)]
        assert time.monotonic() < give_up_at, f"{id} could not be written"
        await asyncio.sleep(0.01)


def shows(member: Member, on_rev: Callable[[int], None]) -> None:
    publish = member.module.publish

    def published(event: Event) -> None:
        publish(event)
        if isinstance(event, ControlStoreCommit):
            on_rev(event.rev)

    member.module.publish = published  # type: ignore[method-assign]


def quantiles(values: list[float]) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered):.2f} {ordered[int(len(ordered) * 0.99)]:.2f}"


def test_three_members_commit_follow_and_agree(home: House, tmp_path: Path, cheap_passwords: None) -> None:
    async def main() -> None:
        async with members(home, tmp_path) as made:
            leader, *followers = made
            append_ms, commit_ms, seen_ms = [], [], []
            shown: dict[int, list[float]] = defaultdict(list)
            for each in followers:
                shows(each, lambda rev: shown[rev].append(time.perf_counter()))
            ask = leader.live.ask

            async def timed(request: Any) -> Any:
                began = time.perf_counter()
                try:
                    return await ask(request)
                finally:
                    if isinstance(request, Append):
                        append_ms.append((time.perf_counter() - began) * 1000)

            leader.live.ask = timed  # type: ignore[method-assign, assignment]
            for number in range(200):
                began = time.perf_counter()
                rev = await leader.put("a", number)
                committed = time.perf_counter()
                commit_ms.append((committed - began) * 1000)
                await eventually(lambda rev=rev: len(shown[rev]) == 2, "both show it", 2)
                seen_ms.append((max(shown[rev]) - committed) * 1000)
            print(
                f"append {quantiles(append_ms)}, commit {quantiles(commit_ms)}, "
                f"commit to verified on both followers {quantiles(seen_ms)} (ms: p50, p99)"
            )
            assert leader.rev == followers[0].rev == followers[1].rev
            for each in made:
                assert await each.get("a") == 199
                assert await each.get("old") == 1
            with pytest.raises(NotLeader) as refused:
                await followers[0].put("b", 1)
            assert refused.value.leader == LeaderHint("n1", "10.77.0.1", "http://10.77.0.1:8080", 1)

    asyncio.run(main())


def test_a_switchover_under_writes_costs_latency_and_no_errors(home: House, tmp_path: Path, cheap_passwords: None) -> None:
    async def main() -> None:
        async with members(home, tmp_path) as made:
            written: dict[str, int] = {}
            errors: list[PiccoloError] = []
            gaps_ms: list[float] = []
            stop = asyncio.Event()

            async def writer(name: int) -> None:
                at, number = made[0], 0
                while not stop.is_set():
                    id, began = f"w{name}-{number}", time.perf_counter()
                    try:
                        written[id] = await at.put(id, number)
                    except NotLeader as error:
                        if error.leader is None:
                            errors.append(error)
                            return
                        at = next(each for each in made if each.name == error.leader.node)
                        continue
                    except PiccoloError as error:
                        errors.append(error)
                        return
                    gaps_ms.append((time.perf_counter() - began) * 1000)
                    number += 1
                    await asyncio.sleep(0.05)

            writers = [asyncio.create_task(writer(name)) for name in range(3)]
            await eventually(lambda: len(written) > 30, "writes go on")
            await is_able("n2", made[0].live)
            await made[0].live.ask(Switchover(resource="kernel", to="n2"), "api")
            had = len(written)
            await eventually(lambda: len(written) > had + 30, "writes go on at the other one")
            stop.set()
            await asyncio.gather(*writers)
            print(f"the longest write took {max(gaps_ms):.0f} ms, {len(written)} writes")
            assert errors == []
            assert made[1].leads
            await eventually(lambda: made[2].rev >= max(written.values()), "the third one has all")
            for id in written:
                assert await made[2].get(id) == int(id.partition("-")[2])

    asyncio.run(main())


def test_a_leader_that_dies_loses_no_acknowledged_write(home: House, tmp_path: Path, cheap_passwords: None) -> None:
    async def main() -> None:
        async with members(home, tmp_path) as made:
            written: dict[str, int] = {}
            at = made[0]
            for number in range(20):
                at, written[f"k{number}"] = await patiently(made, f"k{number}", number, at)
            await made[0].end()
            made[0].live.ticking = False  # its supervisor is gone, and so its session ends
            for number in range(20, 40):
                at, written[f"k{number}"] = await patiently(made[1:], f"k{number}", number, made[1])
            assert len(set(written.values())) == 40
            for each in made[1:]:
                await eventually(lambda each=each: each.rev >= max(written.values()), "it has all")
                for id in written:
                    assert await each.get(id) == int(id[1:])

    asyncio.run(main())


def test_a_locked_leader_gives_the_kernel_to_an_unlocked_member(home: House, tmp_path: Path, cheap_passwords: None) -> None:
    async def main() -> None:
        async with members(home, tmp_path) as made:
            rev = await made[0].put("a", 1)
            await made[0].ask(Lock())
            await eventually(lambda: made[1].leads or made[2].leads, "another one leads")
            at = made[1] if made[1].leads else made[2]
            assert await at.put("a", 2) == rev + 1
            await eventually(lambda: made[0].rev == rev + 1, "the locked one files on")
            await made[0].ask(Unlock(password=PASSWORD, source="test"))
            assert await made[0].get("a") == 2

    asyncio.run(main())

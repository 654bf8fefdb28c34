"""The order to recover, on real etcd: when it is refused, what it takes first, and that this node leads nothing from then on."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

import pytest

from piccolod.errors import Busy, Conflict, Failed, Locked
from piccolod.leadership import leash_table
from piccolod.protocol.log import Append, Exported, ExportLog, SealedEntry
from piccolod.protocol.recovery import GetLogEnd, GetStoreView, Heard, LogEnd, Recover, Standing, Store, StoreView, TakeEntries
from services.consensus.joining import survivor
from services.consensus.joining.recovery import Plan
from tests.unit.consensus.etcd.conftest import eventually, opened, put_keyset
from tests.unit.consensus.etcd.member import GEN, House, Live, living
from tests.unit.consensus.joining.supervisor import Supervisor

ENTRIES = tuple(SealedEntry(rev, b"h", b"n", b"s" * 1000, b"digest of %d" % rev) for rev in range(1, 21))


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    return Supervisor(monkeypatch)


class Log:
    """Persistence with a log up to `rev`, which takes what follows; and consensus' own questions otherwise."""

    def __init__(self, live: Live, rev: int, *, locked: bool = False) -> None:
        self.rev = rev
        self.locked = locked
        self.keyset = b""
        self.took: list[int] = []
        self._former = live.module.call
        live.module.call = self.call  # type: ignore[method-assign]

    async def call(self, request: Any, *, timeout_s: float = 5.0) -> Any:
        if isinstance(request, GetLogEnd):
            return self.end()
        if isinstance(request, TakeEntries):
            self.keyset = request.keyset or self.keyset
            self.took += [entry.rev for entry in request.entries]
            self.rev = max([self.rev, *(entry.rev for entry in request.entries)])
            return self.end()
        if isinstance(request, ExportLog):
            return Exported(
                cluster="c", gen=GEN, head_rev=self.rev, head_digest=b"", snapshot=None, entries=(), keyset=b""
            )  # fmt: skip
        return await self._former(request, timeout_s=timeout_s)

    def end(self) -> LogEnd:
        return LogEnd(rev=self.rev, digest=b"d", gen=GEN, epoch=3, at_ms=1, locked=self.locked)


async def fill(home: House, live: Live) -> None:
    """A log of 20 revs and a keyset, as the leader has committed them."""
    term = await live.lead()
    await live.ask(Append(token=term.token, head_rev=0, head_digest=b"", entries=ENTRIES))
    async with opened(home.etcd) as client:
        await put_keyset(client, home.prefix, b"keyset")


async def lose_quorum(home: House, live: Live) -> None:
    """The member of `live` is left."""
    for each in home.etcd.members[1:]:
        each.kill()

    async def silent() -> bool:
        return (await live.ask(GetStoreView(), "api")).store is Store.SILENT

    await eventually(silent, "it hears no quorum", 15)


def test_while_etcd_answers_it_is_refused_and_nothing_ends(home: House, supervisor: Supervisor) -> None:
    async def main() -> None:
        async with home.two() as (first, _):
            await first.lead()
            log = Log(first, 5)
            assert (await first.ask(GetStoreView(), "api")).store is Store.ANSWERS
            with pytest.raises(Conflict, match="nothing is to be recovered"):
                await first.ask(Recover(heard=(), force=True), "api")
            assert first.node.token() and not supervisor.restarted and log.took == []

    asyncio.run(main())


def test_a_life_that_has_just_begun_does_not_know_yet_that_etcd_is_silent(home: House, supervisor: Supervisor) -> None:
    async def main() -> None:
        (node,) = await home.begin(1)
        for each in home.etcd.members[1:]:
            each.kill()
        async with living(node) as live:
            Log(live, 5)
            assert (await live.ask(GetStoreView(), "api")).store is Store.UNKNOWN
            with pytest.raises(Busy, match="has just started"):
                await live.ask(Recover(heard=(), force=True), "api")
            await lose_quorum(home, live)
            assert not supervisor.restarted

    asyncio.run(main())


def test_without_a_quorum_it_takes_what_its_own_etcd_has_and_tells_what_it_would_be(home: House) -> None:
    async def main() -> None:
        async with home.two() as (first, _):
            await fill(home, first)
            await first.lead("app:blog")
            await lose_quorum(home, first)
            log = Log(first, 5)
            assert await first.ask(GetStoreView(), "api") == StoreView(store=Store.SILENT, gen=GEN, log_rev=20)
            told = await first.ask(Recover(heard=(Heard(node="n2", silence="it is off"),)), "api")
            assert log.took == list(range(6, 21)) and log.keyset == b"keyset"
            assert (told.done, told.rev, told.at_ms, "n2" in told.former) == (False, 20, 1, True)
            assert "n2: it is off" in told.lost[0]
            with pytest.raises(Conflict, match="n2 has the log up to rev 21"):
                more = StoreView(store=Store.SILENT, gen=GEN, log_rev=21)
                await first.ask(Recover(heard=(Heard(node="n2", standing=Standing(node="n2", view=more)),)), "api")
            log.locked = True
            with pytest.raises(Locked):
                await first.ask(Recover(heard=(), force=True), "api")

    asyncio.run(main())


def test_nothing_is_recovered_over_a_container_that_lives(home: House, supervisor: Supervisor) -> None:
    async def main() -> None:
        async with home.two() as (first, _):
            await fill(home, first)
            await lose_quorum(home, first)
            Log(first, 20)
            container = subprocess.Popen(["sleep", "60"])
            try:
                leash_table.write(
                    first.node.paths.leash, leash_table.entry_of("b1", "app:blog", 9, 1, pid=container.pid, cgroup="")
                )
                with pytest.raises(Conflict, match="app:blog: containers still run here"):
                    await first.ask(Recover(heard=(), force=True), "api")
                assert not supervisor.restarted
            finally:
                container.kill()
                container.wait()

    asyncio.run(main())


@pytest.mark.parametrize("fails", [False, True])
def test_from_the_order_on_this_node_leads_nothing_however_it_ends(
    home: House, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    async def main() -> None:
        async with home.two() as (first, _):
            await fill(home, first)
            await first.lead("app:blog")
            await lose_quorum(home, first)
            Log(first, 20)
            plans: list[Plan] = []

            async def run(self: Any, plan: Plan) -> None:
                assert not first.node.page().sid and not first.node.token(), "its gates are shut before etcd is touched"
                plans.append(plan)
                if fails:
                    raise Failed("the disk")

            monkeypatch.setattr(survivor.Recovering, "run", run)
            heard = (Heard(node="n2", standing=Standing(node="n2", view=StoreView(store=Store.SILENT, gen=GEN + 5))),)
            if fails:
                with pytest.raises(Failed):
                    await first.ask(Recover(heard=heard, force=True), "api")
            else:
                assert (await first.ask(Recover(heard=heard, force=True), "api")).done
            (plan,) = plans
            assert plan.least_gen == GEN + 5 and plan.epochs["app:blog"] == 1 and plan.epochs["kernel"] >= 3
            await eventually(lambda: supervisor.restarted == ["consensus"], "its next life begins")

    asyncio.run(main())

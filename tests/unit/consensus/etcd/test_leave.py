"""A member that was taken out becomes a node alone, on real etcd; whatever fails or lives on meanwhile."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from piccolod import cluster_mode
from piccolod.errors import Conflict, StoreRestored, StoreUnavailable
from piccolod.leadership import events, leash_table
from piccolod.protocol.cluster import GetCluster, KnownMember, Leave
from services.consensus import seed, wire
from services.consensus.etcd.transaction import Delete, Transaction
from services.consensus.joining.folder import Folder
from services.consensus.static_leaser import StaticLeaser
from tests.unit.consensus.etcd.conftest import eventually, opened
from tests.unit.consensus.etcd.member import House, Live, Node, living
from tests.unit.consensus.joining.supervisor import Supervisor

ACT = ["persistence", "apps", "api"]


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    return Supervisor(monkeypatch)


async def take_out(home: House, node: Node) -> None:
    async with opened(home.etcd) as client:
        await client.transact(Transaction((), (Delete(f"{home.prefix}node/{node.name}"),)), 5)


async def is_alone(node: Node, supervisor: Supervisor) -> None:
    """The next life of its consensus: of a node alone that leads nothing, and everybody else starts again."""
    await eventually(lambda: supervisor.restarted == ["consensus"], "consensus restarts")
    async with living(node) as live:
        assert isinstance(live.service._leaser, StaticLeaser)
        assert supervisor.restarted == ["consensus", *ACT]
        assert live.service._leaser.records() == {} and node.page().terms == {}
        assert (await live.ask(GetCluster(), "api")).mode == "alone"
        assert not node.paths.cluster.exists() or Folder(node.paths).is_left_over()


def with_a_store(node: Node) -> None:
    node.paths.store.mkdir()
    node.paths.control_db.write_text("the cluster's")


def test_who_was_taken_out_leaves_and_nothing_of_the_cluster_is_led_on(home: House, supervisor: Supervisor) -> None:
    async def main() -> None:
        _, node = await home.begin(2)
        with_a_store(node)
        aside = node.paths.cluster.rename(node.folder / "aside")
        async with living(node) as alone:  # what it led before it was a member must not come back
            await alone.lead()
            await alone.lead("app:old")
        aside.rename(node.paths.cluster)
        async with living(node) as live:
            await live.lead()
            await live.lead("app:blog")
            with pytest.raises(Conflict, match="still a member"):
                await live.ask(Leave(), "api")
            await take_out(home, node)
            node.paths.lock_mark.parent.mkdir()
            node.paths.lock_mark.write_text("this boot")  # `lock` on purpose, of the store that goes
            await live.ask(Leave(), "api")
            assert cluster_mode.load(node.paths.cluster) is None
            assert not node.paths.lock_mark.exists()
            assert not list(node.paths.store.iterdir()), "its store is set aside"
            await eventually(lambda: supervisor.restarted, "it restarts")
        await is_alone(node, supervisor)

    asyncio.run(main())


def test_a_leave_whose_etcd_does_not_end_is_a_leave_all_the_same(home: House, supervisor: Supervisor) -> None:
    async def main() -> None:
        _, node = await home.begin(2)
        async with living(node) as live:
            await take_out(home, node)
            supervisor.refuses = "etcd"
            await live.ask(Leave(), "api")
            await eventually(lambda: supervisor.restarted, "it restarts")
        await is_alone(node, supervisor)
        assert Folder(node.paths).is_left_over()
        supervisor.refuses = ""
        async with living(node):
            assert not Folder(node.paths).is_left_over(), "the next life wipes it"

    asyncio.run(main())


def test_without_quorum_only_force_makes_a_node_alone_of_it(home: House, supervisor: Supervisor) -> None:
    async def main() -> None:
        _, node = await home.begin(2)
        async with living(node) as live:
            await live.lead()
            await take_out(home, node)
            for member in home.etcd.members[1:]:
                member.freeze()
            with pytest.raises(StoreUnavailable):
                await live.ask(Leave(), "api")
            await live.ask(Leave(force=True), "api")
            assert cluster_mode.load(node.paths.cluster) is None
            await eventually(lambda: supervisor.restarted, "it restarts")
        await is_alone(node, supervisor)

    asyncio.run(main())


def test_a_node_whose_place_another_machine_has_taken_leaves_and_takes_nothing_from_it(
    home: House, supervisor: Supervisor
) -> None:
    async def main() -> None:
        _, node = await home.begin(2)
        async with living(node) as live:
            await live.lead()
            other = KnownMember(address="10.77.0.99", client_url="https://10.77.0.99:2379", rpc="")
            async with opened(home.etcd) as client:
                await seed.put_node(client, home.prefix, node.name, other)
                await eventually(lambda: live.leaser.registration.is_replaced(), "it sees that")
                assert (await live.ask(GetCluster(), "api")).out
                await live.ask(Leave(), "api")
                (found,), _ = await client.list(f"{home.prefix}node/{node.name}", 5)
                assert wire.decode(f"node/{node.name}", found.value) == other
            await eventually(lambda: supervisor.restarted, "it restarts")
        await is_alone(node, supervisor)

    asyncio.run(main())


def test_who_does_not_believe_its_etcd_any_more_leaves_by_force_whatever_that_says(home: House, supervisor: Supervisor) -> None:
    async def main() -> None:
        _, node = await home.begin(2)
        async with living(node) as live:
            await live.lead()
            driver = live.leaser.driver
            driver.feed(events.Overheard(events.Header(1, driver.state.highest), 0))
            await eventually(lambda: driver.state.restored, "it does not believe it")
            with pytest.raises(StoreRestored):
                await live.ask(Leave(), "api")
            await live.ask(Leave(force=True), "api")
            await eventually(lambda: supervisor.restarted, "it restarts")
        await is_alone(node, supervisor)

    asyncio.run(main())


@pytest.mark.parametrize("force", [False, True], ids=["", "forced"])
def test_nobody_leaves_while_a_container_of_it_lives(home: House, supervisor: Supervisor, force: bool) -> None:
    async def main() -> None:
        _, node = await home.begin(2)
        container = subprocess.Popen(["sleep", "60"])
        try:
            async with living(node) as live:
                await refused(live, container, force)
            assert cluster_mode.load(node.paths.cluster) is not None and not supervisor.restarted
        finally:
            container.kill()
            container.wait()

    async def refused(live: Live, container: subprocess.Popen[bytes], force: bool) -> None:
        await live.lead()
        app = await live.lead("app:blog")
        armed = leash_table.entry_of("blog1", "app:blog", app.token, app.epoch, pid=container.pid, cgroup="")
        leash_table.write(live.node.paths.leash, armed)
        await take_out(home, live.node)
        with pytest.raises(Conflict, match="app:blog: containers still run here"):
            await live.ask(Leave(force=force), "api")

    asyncio.run(main())

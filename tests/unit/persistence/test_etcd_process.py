"""A member as it runs: broker, consensus and persistence as processes of their own on the real bus, and real etcd."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from piccolod import cluster_mode, etcd_conf
from piccolod.cluster_mode import Mode
from piccolod.errors import PiccoloError
from piccolod.leadership.gate import Gate
from piccolod.leadership.page import PageReader
from piccolod.module import Module
from piccolod.protocol.cluster import KnownMember
from piccolod.protocol.persistence import GetRevision, Lock
from piccolod.supervisor.rundir import RunDir
from services.consensus import members_file, seed
from services.consensus.cluster_records import prefix
from services.persistence.catch_up import on_the_wire
from services.persistence.log import LogReader
from tests.etcd import Cluster
from tests.unit.consensus.etcd.conftest import etcd as etcd
from tests.unit.consensus.etcd.conftest import opened, put_keyset
from tests.unit.consensus.etcd.conftest import three_members as three_members

from .house import House, begun, commit, member, set_up, unlock, until, write

pytestmark = pytest.mark.skipif(not shutil.which("etcd"), reason="needs etcd")

TICK_S = 0.05


class MemberHouse(House):
    """A node alone that becomes a member: what `cluster init` leaves is made by hand, as is the supervisor's tick."""

    def __init__(self, folder: Path, etcd: Cluster) -> None:
        super().__init__(folder, "tests.unit.persistence.hasty:main")
        self.etcd = etcd

    async def enter(self, cluster: str) -> None:
        paths, node = self.paths, self.config.node
        cluster_mode.make_folder(paths.cluster)
        (paths.cluster / "timing.json").write_text('{"profile": "fast", "stop_s": 0.1}')
        own = self.etcd.members[0].settings
        etcd_conf.write(own, paths.etcd_conf)
        others = {
            each.settings.name: KnownMember(address="", client_url=each.settings.client_url, rpc="")
            for each in self.etcd.members
        }
        members_file.write(paths, others)
        async with opened(self.etcd) as client:
            await seed.put_gen(client, prefix(cluster), 2**61)
            record = KnownMember(
                address=node.address, client_url=own.client_url, rpc=f"{node.address}:7444", api_url="http://n1.test"
            )
            await seed.put_node(client, prefix(cluster), node.name, record)
            reader = LogReader(paths.control_db)
            entries = [on_the_wire(entry) for entry in reader.entries()]
            reader.close()
            await seed.put_log(client, prefix(cluster), 2**61, entries)
            await put_keyset(client, prefix(cluster), paths.keyset.read_bytes())
        cluster_mode.enter(paths.cluster, Mode(cluster=cluster, node=node.name, since_ms=1))

    def restart(self, name: str, entry: str) -> None:
        self.kill(name)
        self.pump()
        self.links.pop(name).close()
        self.start(name, entry)


@pytest.fixture
def house(etcd: Cluster) -> Iterator[MemberHouse]:
    with begun(lambda folder: MemberHouse(folder, etcd)) as made:
        yield made


@asynccontextmanager
async def ticking(house: MemberHouse) -> AsyncIterator[None]:
    run_dir = RunDir(house.paths)

    async def tick() -> None:
        while True:
            run_dir.tick()
            await asyncio.sleep(TICK_S)

    ticks = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticks.cancel()
        run_dir.close()


async def patiently(api: Module, id: str, value: int) -> int:
    for _ in range(400):
        try:
            return await commit(api, write(id, {"v": value}), idem=f"{id}-{value}")
        except PiccoloError:
            await asyncio.sleep(0.02)
    raise AssertionError(f"{id} could not be written")


def test_a_member_commits_through_etcd_and_survives_kills_of_its_processes(house: MemberHouse) -> None:
    async def main() -> None:
        gate = Gate(PageReader(house.paths.page))
        async with ticking(house), member(house) as api:
            cluster = (await set_up(api)).cluster_id
            await house.enter(cluster)
            house.restart("consensus", "services.consensus.__main__:main")
            house.restart("persistence", "tests.unit.persistence.hasty:main")
            await until(lambda: gate.holds("kernel"), "it leads in etcd", 20)
            rev = await patiently(api, "a", 1)
            async with opened(house.etcd) as client:
                found, _ = await client.list(prefix(cluster) + "ctl/log/", 5.0)
            assert [int(item.key[-20:]) for item in found] == list(range(1, rev + 1))
            written = {f"k{number}": await patiently(api, f"k{number}", number) for number in range(20)}
            for _ in range(3):
                house.replace_persistence()
                await until(lambda: api.peers.instance("persistence") == house.peers["persistence"][1], "it is known")
                rev = await patiently(api, "b", rev)
            assert len(set(written.values())) == 20
            await api.call(Lock())
            await until(lambda: not gate.holds("kernel"), "a locked member gives the kernel up")
            await asyncio.to_thread(house.replace_persistence, kill=False)
            await until(lambda: api.peers.instance("persistence") == house.peers["persistence"][1], "it is known")
            await unlock(api)
            assert await patiently(api, "c", 1) > rev
            assert (await api.call(GetRevision())).rev == await patiently(api, "c", 1)

    asyncio.run(main())

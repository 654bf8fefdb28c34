from __future__ import annotations

import asyncio

import pytest

from services.consensus.etcd.client import Client
from services.consensus.etcd.failures import TransactionUnknown
from services.consensus.etcd.header import Header
from services.consensus.etcd.status import Alarm, Status
from services.consensus.etcd.transaction import Put, Transaction
from services.consensus.etcd.upkeep import Act, Upkeep, due
from tests.etcd import Cluster
from tests.unit.consensus.etcd.conftest import eventually, run

MIB = 1 << 20
QUOTA = 256 * MIB
FULL = (Alarm(1, "NOSPACE", 1),)


def told(db: int, used: int) -> Status:
    return Status(Header(7, 1, 100, 2), "3.4.23", db * MIB, used * MIB, 1, False)


@pytest.mark.parametrize(
    ("status", "alarms", "rested_s", "act"),
    [
        (told(100, 90), (), 1e6, None),
        (told(100, 40), (), 1e6, Act.DEFRAGMENT),
        (told(100, 40), (), 60, None),  # not again so soon
        (told(40, 10), (), 1e6, None),  # not worth it
        (told(200, 150), (), 400, Act.DEFRAGMENT),  # the alarm counts the file
        (told(200, 150), (), 60, None),
        (told(200, 180), (), 1e6, None),  # nothing to gain
        (told(256, 250), FULL, 600, Act.SHRINK),
        (told(256, 250), FULL, 5, None),
        (told(100, 100), FULL, 0, Act.DISARM),
        (told(100, 100), (Alarm(2, "NOSPACE", 1),), 0, None),  # each its own
        (told(100, 90), (Alarm(1, "CORRUPT", 2),), 0, None),  # nothing that a program may heal
    ],
)
def test_what_is_due(status, alarms, rested_s, act):
    assert due(status, alarms, QUOTA, rested_s) is act


@pytest.mark.parametrize("count", [1, 3])
def test_a_full_etcd_is_named_and_takes_writes_again_by_itself(count):
    async def test(client: Client) -> None:
        heard: list[list[str]] = []

        async def tell(alarms: list[str]) -> None:
            heard.append(alarms)

        with pytest.raises(TransactionUnknown, match="NOSPACE"):
            for _ in range(1000):
                await client.transact(Transaction((), tuple(Put(f"/{n}", bytes(100_000)) for n in range(10))), 5)
        looks = [Upkeep(own, 24 * MIB, tell) for own in locals_]

        async def well() -> bool:
            alarms = [await each.look() for each in looks]
            return not any(alarms)

        await eventually(well, "no alarm is left", 20)
        assert heard[0][0].startswith("NOSPACE on m")
        assert heard[-1] == []
        await client.transact(Transaction((), (Put("/again", b""),)), 5)

    async def main() -> None:
        locals_.extend(Client([each], None, rpc_s=2.0) for each in cluster.endpoints)
        client = Client(cluster.endpoints, None, rpc_s=5.0)
        try:
            await test(client)
        finally:
            for each in (client, *locals_):
                await each.close()

    locals_: list[Client] = []
    with Cluster(count, quota_bytes=24 * MIB) as cluster:
        asyncio.run(main())


def test_an_etcd_that_is_well_is_left_alone(etcd):
    async def test(client: Client) -> None:
        heard: list[list[str]] = []

        async def tell(alarms: list[str]) -> None:
            heard.append(alarms)

        assert await Upkeep(client, QUOTA, tell).look() == ()
        assert heard == [[]]

    run(test, etcd)

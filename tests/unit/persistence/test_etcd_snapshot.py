"""What the leader puts into etcd so that its log stays bounded, by revs, by bytes, and when etcd is full."""

from __future__ import annotations

import asyncio

import pytest

from piccolod.errors import StoreFull
from services.persistence import etcd_snapshot

from .house import until
from .town import Town, in_town


@in_town
async def test_the_leader_puts_a_snapshot_into_etcd_when_it_is_due_and_a_joiner_takes_it(town: Town) -> None:
    n1 = await town.found()
    await n1.until_leads()
    for number in range(etcd_snapshot.REVS // 50):
        await asyncio.gather(*(n1.put(f"a{at}", number) for at in range(50)))
    await until(lambda: town.etcd.snapshot[0] >= etcd_snapshot.REVS, "the snapshot is there")
    assert min(town.etcd.log, default=town.etcd.head_rev + 1) == town.etcd.snapshot[0] + 1, "the log is trimmed"
    n2 = await town.join("n2")
    await n2.catches_up(town.etcd.head_rev)
    assert await n2.get("a49") == etcd_snapshot.REVS // 50 - 1


@in_town
async def test_the_log_in_etcd_is_bounded_in_bytes_too(town: Town) -> None:
    n1 = await town.found()
    await n1.until_leads()
    for number in range(40):
        await n1.put("large", str(number) * 150_000)
    await until(lambda: town.etcd.snapshot[0] > 4, "the snapshot is there")


@in_town
async def test_a_full_etcd_gets_a_snapshot_that_makes_room_though_none_is_due(town: Town) -> None:
    n1 = await town.found()
    await n1.until_leads()
    await n1.put("a", 1)
    town.etcd.full = True
    with pytest.raises(StoreFull):
        await n1.put("a", 2)
    await until(lambda: town.etcd.snapshot[0] == 5, "what is there is trimmed")
    town.etcd.full = False
    assert await n1.put("a", 2) == 6

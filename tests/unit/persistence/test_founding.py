"""How a node becomes a member of a cluster: the first one with the log that it had, others with the cluster's."""

from __future__ import annotations

import asyncio

import pytest

from piccolod.errors import Conflict, DeadlineExceeded, NotLeader, StoreUnavailable
from piccolod.protocol.log import ExportLog
from piccolod.protocol.persistence import GetCryptoStatus, GetLog

from .town import Town, in_town


@in_town
async def test_a_node_alone_becomes_the_first_member_with_the_very_log_that_it_had(town: Town) -> None:
    n1 = await town.found()
    before = (await n1.ask(GetLog())).entries
    await n1.until_leads()
    assert [entry.rev for entry in before] == [1, 2, 3, 4]
    assert await n1.get("old2") == 2
    assert await n1.put("new", 1) == 5
    assert town.etcd.head_rev == 5
    assert town.etcd.log[5].digest.hex() == (await n1.revision()).digest
    with pytest.raises(Conflict):
        await n1.ask(ExportLog(after=0), caller="consensus")


@in_town
async def test_a_joiner_takes_the_keyset_files_the_sealed_log_and_opens_with_the_same_password(town: Town) -> None:
    await town.found()
    n2 = await town.locked_follower()
    status = await n2.ask(GetCryptoStatus())
    assert (status.initialized, status.locked, status.cluster_id) == (True, True, town.cluster)
    assert n2.shown() == [], "a locked node shows nothing"
    await n2.unlock()
    assert n2.shown()[-1] == 4
    assert await n2.get("old1") == 1
    with pytest.raises(NotLeader) as caught:
        await n2.put("a", 1)
    assert caught.value.leader is not None
    assert (caught.value.leader.node, caught.value.leader.url) == ("n1", "https://n1.test")


@in_town
async def test_a_joiner_waits_for_the_keyset_and_says_so(town: Town) -> None:
    await town.found()
    town.etcd.down = True
    n2 = await town.join("n2", unlocked=False)
    with pytest.raises(StoreUnavailable):
        await n2.unlock()
    assert "has not come yet" in (await n2.ask(GetCryptoStatus())).reason
    town.etcd.down = False
    await n2.catches_up(4)
    await n2.unlock()
    assert await n2.get("old1") == 1


@in_town
async def test_an_unlock_waits_for_no_etcd_that_hangs(town: Town) -> None:
    await town.found()
    n2 = await town.locked_follower()
    ask = n2.consensus.ask

    async def hangs(request: object, *, timeout_s: float) -> object:
        await asyncio.sleep(timeout_s)
        raise DeadlineExceeded("no answer")

    n2.consensus.ask = hangs  # type: ignore[method-assign]
    await asyncio.wait_for(n2.unlock(), 8.0)
    assert await n2.get("old1") == 1, "it reads what it has"
    n2.consensus.ask = ask  # type: ignore[method-assign]

"""The leaser of a member of a cluster, on real etcd: claimed, kept, resumed, lost."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import pytest

from piccolod import clock
from piccolod.errors import Conflict, NoLeader, NotLeader, StoreUnavailable
from piccolod.leadership.timing import FAST
from piccolod.protocol.base import Level
from piccolod.protocol.cluster import GetCluster
from piccolod.protocol.consensus import Campaign, GetHistory, GetLeadership, GetWhy
from tests.node import until
from tests.unit.consensus.etcd.conftest import eventually
from tests.unit.consensus.etcd.member import GEN, SPAN_S, House, Live, Node, holders, living

# How late a busy machine may run what is due.
LATE_S = 1.0


def test_a_campaign_is_a_term_on_the_page_and_in_every_registry(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            term = await one.lead()
            assert (term.gen, term.epoch, term.token) == (GEN, 1, one.node.token())
            await eventually(lambda: ("leader", "n1", 1) in one.roles(), "the leader is announced")
            await eventually(lambda: ("follower", "n1", 1) in two.roles(), "the follower knows who leads")
            with pytest.raises(NotLeader) as refused:
                await two.ask(Campaign(resource="kernel"))
            hint = refused.value.leader
            assert hint is not None
            assert (hint.node, hint.address, hint.url, hint.epoch) == ("n1", "10.77.0.1", "http://10.77.0.1:8080", 1)
            (seen,) = (await two.ask(GetLeadership(resource="kernel"), "api")).leaderships
            assert (seen.role, seen.node, seen.url) == ("follower", "n1", "http://10.77.0.1:8080")
            assert seen.deadline_s is not None and 0 < seen.deadline_s <= SPAN_S
            why = await two.ask(GetWhy(resource="kernel"), "api")
            assert "n1 leads kernel in epoch 1" in why.explanation
            assert [change.reason for change in why.history] == ["bootstrap"]

    asyncio.run(main())


def test_each_node_has_its_seconds_to_the_deadline_and_one_that_nobody_may_take_from_has_none(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            await one.lead()
            await one.has_takers()
            for live in (one, two):
                left = {each.node: each.deadline_s for each in (await live.ask(GetCluster(), "api")).members}
                assert set(left) == {"n1", "n2"}
                assert all(each is not None and 0 < each <= SPAN_S for each in left.values()), left

    asyncio.run(main())


def test_who_is_alone_in_a_cluster_has_no_deadline(home: House) -> None:
    async def main() -> None:
        (lone,) = await home.begin(1)
        async with living(lone) as live:
            await live.lead()
            (member,) = (await live.ask(GetCluster(), "api")).members
            assert member.deadline_s is None

    asyncio.run(main())


@pytest.mark.parametrize("cluster", ["", "another"])
def test_a_store_that_commits_elsewhere_is_granted_no_term_of_the_cluster(home: House, cluster: str) -> None:
    async def main() -> None:
        (node,) = await home.begin(1)
        async with living(node) as live:
            await live.lead()
            with pytest.raises(Conflict, match=f"this is a member of the cluster {home.cluster}"):
                await live.module.ask(Campaign(resource="kernel", cluster=cluster))

    asyncio.run(main())


def test_a_crashed_consensus_resumes_its_session_and_its_term_within_it(home: House) -> None:
    async def main() -> None:
        (node,) = await home.begin(1)
        async with living(node) as live:
            term = await live.lead()
        before = node.page()
        async with living(node) as live:
            assert await live.ask(Campaign(resource="kernel")) == term
            assert node.page().sid == before.sid
            await eventually(lambda: live.leaser.driver.state.session.seq > 1, "heartbeats go on")
            assert node.token() == term.token
            assert len((await live.ask(GetHistory(), "api")).changes) == 1

    asyncio.run(main())


def test_kill_9_of_the_leader_and_another_one_claims_once_its_span_has_passed(home: House) -> None:
    holder, others, process = home.elected(3)
    token = holder.token()
    process.send_signal(signal.SIGKILL)
    killed_at = clock.now()
    (next_one,) = until(lambda: holders(others), "another one leads", 10, 0.005)
    took_s = clock.now() - killed_at
    assert clock.now() >= holder.page().hard_at, "never before the deadline of the one that died"
    assert next_one.token() > token
    assert took_s < FAST.worst_crash_to_claim_s + LATE_S


def test_a_leader_that_was_frozen_for_long_does_not_lead_when_it_wakes(home: House) -> None:
    holder, others, process = home.elected(3)
    epoch = holder.page().terms["kernel"].epoch
    most = 0

    def leading() -> list[Node]:
        nonlocal most
        found = holders([holder, *others])
        most = max(most, len(found))
        return [node for node in found if node is not holder]

    process.send_signal(signal.SIGSTOP)
    (other,) = until(leading, "another one leads", 10, 0.002)
    process.send_signal(signal.SIGCONT)
    sid = other.page().sid
    until(
        lambda: leading() and holder.page().sid not in (0, sid) and holder.page().hard_at > clock.now(), "it is back", 8, 0.002
    )
    assert most == 1, "never two at once"
    assert leading() == [other] and other.page().terms["kernel"].epoch == epoch + 1


def test_a_restarted_process_keeps_its_term_and_nobody_else_notices(home: House) -> None:
    holder, _, process = home.elected(2)
    token, sid = holder.token(), holder.page().sid
    for _ in range(3):
        process.kill()
        process.wait()
        before = holder.page()
        process = home.start(holder)
        until(lambda before=before: holder.page().hard_at > before.hard_at, "it beats again", 3)
        assert (holder.token(), holder.page().sid) == (token, sid)


def test_a_node_whose_supervisor_does_not_act_loses_the_lead_by_its_deadline(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            await one.lead()
            await one.has_takers()
            one.ticking = False
            await two.lead()
            assert not one.node.token() and clock.now() >= one.node.page().hard_at
            await eventually(lambda: ("follower", "n2", 2) in one.roles(), "it follows")

    asyncio.run(main())


def test_every_member_is_told_who_is_there_and_who_has_gone_silent(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(first) as one:
            await one.lead()
            await eventually(lambda: one.states().get("n2") == "silent", "the other one is not there yet")
            async with living(second) as two:
                await eventually(lambda: one.states().get("n2") == "alive", "it has come")
                await eventually(lambda: two.states() == {"n1": "alive", "n2": "alive"}, "it knows both")
            await eventually(lambda: one.states() == {"n1": "alive", "n2": "silent"}, "it has gone", SPAN_S + 2)

    asyncio.run(main())


def test_without_quorum_nobody_leads_beyond_the_deadline_and_all_say_why(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            term = await one.lead()
            await one.has_takers()
            for member in home.etcd.members[1:]:
                member.freeze()
            await eventually(lambda: not one.node.token(), "the term is over", SPAN_S + 1)
            for live in (one, two):
                await eventually(lambda live=live: says_unavailable(live), "it says that the store is away")
                await eventually(lambda live=live: live.module.healths[-1][0] is Level.ERROR, "its health says so, too")
            for member in home.etcd.members[1:]:
                member.thaw()

            async def led_again() -> bool:
                await says_unavailable(one)
                return one.node.token() > term.token or two.node.token() > term.token

            await eventually(led_again, "one leads again")

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["kill", "freeze"])
@pytest.mark.parametrize("leads", [False, True], ids=["a follower", "the leader"])
def test_a_lost_member_of_etcd_ends_no_term(home: House, fault: str, leads: bool) -> None:
    """The one beside the holder: it is asked first, and everything goes on at the next one."""

    async def main() -> None:
        index = home.etcd.members.index(home.etcd.leader()) + (0 if leads else 1)
        nodes = await home.begin(6)
        holder, other = nodes[index], nodes[index + 1]
        async with living(holder) as live, living(other) as _:
            term = await live.lead()
            await live.has_takers()
            local = home.etcd.members[index % 3]
            local.kill() if fault == "kill" else local.freeze()
            before = holder.page().hard_at
            await eventually(lambda: holder.page().hard_at > before + SPAN_S, "it beats on", 2 * SPAN_S)
            assert holder.token() == term.token
            (shown,) = (await live.ask(GetLeadership(resource="kernel"), "api")).leaderships
            assert (shown.node, shown.epoch) == (holder.name, 1)

    asyncio.run(main())


async def says_unavailable(live: Live) -> bool:
    with contextlib.suppress(NotLeader, NoLeader):
        try:
            await live.ask(Campaign(resource="kernel"))
        except StoreUnavailable:
            return True
    return False

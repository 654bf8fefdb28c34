"""The leaser of a member of a cluster, on real etcd: claimed, kept, resumed, handed over, lost."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Iterator

import pytest

from piccolod import clock
from piccolod.errors import Busy, Conflict, Exists, NoLeader, NotFound, NotLeader, StoreUnavailable
from piccolod.leadership import leash_table
from piccolod.leadership.keys import SessionRecord
from piccolod.leadership.timing import FAST
from piccolod.protocol.base import Level
from piccolod.protocol.cluster import KnownMember, RemoveMember
from piccolod.protocol.consensus import (
    Campaign,
    Closing,
    GetHistory,
    GetLeadership,
    GetWhy,
    Pause,
    Release,
    Switchover,
    Withdraw,
)
from piccolod.protocol.log import Drained
from services.consensus import members_file, seed, wire
from services.consensus.etcd.transaction import Delete, Put, Transaction
from tests.etcd import Cluster
from tests.node import until
from tests.unit.consensus.etcd.conftest import eventually, opened
from tests.unit.consensus.etcd.member import GEN, House, Node, house, living

# Profile fast: L 3.0 s and a bit; a claim comes within a few commits after that.
SPAN_S = 3.0
# How late a busy machine may run what is due.
LATE_S = 1.0


@pytest.fixture
def home(etcd: Cluster) -> Iterator[House]:
    with house(etcd) as made:
        yield made


def holders(nodes: list[Node]) -> list[Node]:
    return [node for node in nodes if node.token()]


def test_a_campaign_is_a_term_on_the_page_and_in_every_registry(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(first) as one, living(second) as two:
            term = await one.lead()
            assert (term.gen, term.epoch, term.token) == (GEN, 1, first.token())
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
    nodes = asyncio.run(home.begin(3))
    processes = {node.name: home.start(node) for node in nodes}
    (holder,) = until(lambda: holders(nodes), "one leads", 15)
    token = holder.token()
    others = [node for node in nodes if node is not holder]
    # Only those that the leader has acknowledged may take over: then its deadline runs.
    until(lambda: holder.page().hard_at < clock.FOREVER, "its takers are acknowledged", 5)
    processes[holder.name].send_signal(signal.SIGKILL)
    killed_at = clock.now()
    (next_one,) = until(lambda: holders(others), "another one leads", 10, 0.005)
    took_s = clock.now() - killed_at
    assert clock.now() >= holder.page().hard_at, "never before the deadline of the one that died"
    assert next_one.token() > token
    assert took_s < FAST.worst_crash_to_claim_s + LATE_S


def test_a_leader_that_was_frozen_for_long_does_not_lead_when_it_wakes(home: House) -> None:
    nodes = asyncio.run(home.begin(3))
    processes = {node.name: home.start(node) for node in nodes}
    (holder,) = until(lambda: holders(nodes), "one leads", 15)
    until(lambda: holder.page().hard_at < clock.FOREVER, "its takers are acknowledged", 5)
    epoch = holder.page().terms["kernel"].epoch
    most = 0

    def leading() -> list[Node]:
        nonlocal most
        found = holders(nodes)
        most = max(most, len(found))
        return [node for node in found if node is not holder]

    processes[holder.name].send_signal(signal.SIGSTOP)
    (other,) = until(leading, "another one leads", 10, 0.002)
    processes[holder.name].send_signal(signal.SIGCONT)
    sid = other.page().sid
    until(
        lambda: leading() and holder.page().sid not in (0, sid) and holder.page().hard_at > clock.now(), "it is back", 8, 0.002
    )
    assert most == 1, "never two at once"
    assert leading() == [other] and other.page().terms["kernel"].epoch == epoch + 1


def test_a_restarted_process_keeps_its_term_and_nobody_else_notices(home: House) -> None:
    nodes = asyncio.run(home.begin(2))
    processes = {node.name: home.start(node) for node in nodes}
    (holder,) = until(lambda: holders(nodes), "one leads", 15)
    until(lambda: holder.page().hard_at < clock.FOREVER, "its taker is acknowledged", 5)
    token, sid = holder.token(), holder.page().sid
    for _ in range(3):
        processes[holder.name].kill()
        processes[holder.name].wait()
        before = holder.page()
        processes[holder.name] = home.start(holder)
        until(lambda before=before: holder.page().hard_at > before.hard_at, "it beats again", 3)
        assert (holder.token(), holder.page().sid) == (token, sid)


def test_a_node_whose_supervisor_does_not_act_loses_the_lead_by_its_deadline(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(first) as one, living(second) as two:
            await one.lead()
            await eventually(lambda: first.page().hard_at < clock.FOREVER, "its taker is acknowledged")
            one.ticking = False
            await two.lead()
            assert not first.token() and clock.now() >= first.page().hard_at
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


# --- planned moves


def test_a_switchover_hands_the_kernel_over_after_the_drain(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(first) as one, living(second) as two:
            term = await one.lead()
            open_at_drain: list[int] = []

            async def drain() -> Drained:
                open_at_drain.append(first.token())
                with pytest.raises(Busy):
                    await one.ask(Campaign(resource="kernel"))
                return Drained(rev=0, digest=b"")

            one.module.drain = drain
            with pytest.raises(NotLeader):
                await two.ask(Campaign(resource="kernel"))
            await two_is_able(one)
            led = await one.ask(Switchover(resource="kernel", to="n2"), "api")
            assert (led.node, led.epoch, led.reason) == ("n2", 2, "switchover")
            assert open_at_drain == [0], "its gate is shut before it is drained"
            await eventually(lambda: second.token() > term.token, "the other one acts")
            assert not first.token()
            (change, _) = (await two.ask(GetHistory(resource="kernel"), "api")).changes
            assert (change.from_node, change.to_node, change.reason) == ("n1", "n2", "switchover")

    asyncio.run(main())


def test_a_switchover_that_is_not_drained_in_time_is_taken_back(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(first) as one, living(second) as two:
            term = await one.lead()
            with pytest.raises(NotLeader):
                await two.ask(Campaign(resource="kernel"))
            await two_is_able(one)
            one.module.drain = asyncio.Event().wait  # type: ignore[assignment]
            with pytest.raises(Conflict, match="stays here"):
                await one.ask(Switchover(resource="kernel", to="n2"), "api")
            assert first.token() == term.token and not second.token()

    asyncio.run(main())


def test_whoever_cannot_take_the_kernel_is_refused_with_the_reason(home: House) -> None:
    async def main() -> None:
        first, _ = await home.begin(2)
        async with living(first) as one:
            await one.lead()
            for to, error in (("n1", Exists), ("n9", NotFound), ("n2", Conflict)):
                with pytest.raises(error):
                    await one.ask(Switchover(resource="kernel", to=to), "api")
            with pytest.raises(Conflict, match="no other node"):
                await one.ask(Release(resource="kernel"), "api")
            (shown,) = (await one.ask(GetLeadership(resource="kernel"), "api")).leaderships
            assert {each.node: each.eligible for each in shown.candidates} == {"n1": True, "n2": False}

    asyncio.run(main())


def test_a_release_gives_the_kernel_to_one_that_asks_for_it(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(first) as one, living(second) as two:
            await one.lead()
            with pytest.raises(NotLeader):
                await two.ask(Campaign(resource="kernel"))
            await two_is_able(one)
            assert (await one.ask(Release(resource="kernel"), "api")).node == "n2"
            await eventually(second.token, "the other one acts")

    asyncio.run(main())


def test_a_withdrawn_term_is_free_at_once_for_who_asks(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(first) as one, living(second) as two:
            term = await one.lead()
            await eventually(lambda: first.page().hard_at < clock.FOREVER, "its taker is acknowledged")
            claiming = asyncio.create_task(two.lead())
            await one.ask(Closing(resource="kernel", token=term.token))
            await one.ask(Withdraw(resource="kernel", token=term.token, reason="drain"))
            withdrawn_at = clock.now()
            assert (await claiming).epoch == 2
            assert clock.now() - withdrawn_at < 1.5, "nobody waits for a span"

    asyncio.run(main())


def test_while_the_cluster_is_paused_nothing_moves_and_any_member_resumes_it(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(second) as two:
            async with living(first) as one:
                await one.lead()
                with pytest.raises(NotLeader):
                    await two.ask(Campaign(resource="kernel"))
                await two_is_able(one)
                await two.ask(Pause(on=True, author="admin"), "api")
                await eventually(lambda: one.leaser.driver.state.paused, "the leader has heard of it")
                with pytest.raises(Conflict, match="paused"):
                    await one.ask(Switchover(resource="kernel", to="n2"), "api")
            await eventually(lambda: not first.token(), "the term is over", SPAN_S + 1)
            with pytest.raises(AssertionError):
                await two.lead(within_s=2.0)
            await two.ask(Pause(on=False), "api")
            assert (await two.lead()).epoch == 2

    asyncio.run(main())


def test_a_node_that_stops_gives_the_kernel_away_once_its_persistence_has_ended(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(second) as two:
            async with living(first) as one:
                await one.lead()
                with pytest.raises(NotLeader):
                    await two.ask(Campaign(resource="kernel"))
                await two_is_able(one)
                one.module.stop_all = True
                asyncio.get_running_loop().call_later(0.1, one.module.peers.__dict__.update, {"instance": lambda _name: ""})
                stopped_at = clock.now()
            await eventually(second.token, "the other one leads")
            assert clock.now() - stopped_at < 1.0, "nobody waits for a span"
            (_, over, _) = (await two.ask(GetHistory(resource="kernel"), "api")).changes
            assert over.reason == "drain"

    asyncio.run(main())


# --- who does not lead


def test_a_node_whose_persistence_stays_dead_gives_the_kernel_up(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(first) as one, living(second) as two:
            await one.lead()
            one.module.peers.instance = lambda _name: ""
            one.module.drain = asyncio.Event().wait  # type: ignore[assignment]
            assert (await two.lead()).epoch == 2
            assert not first.token()
            (_, over, _) = (await two.ask(GetHistory(resource="kernel"), "api")).changes
            assert (over.from_node, over.to_node, over.reason) == ("n1", "", "unhealthy")

    asyncio.run(main())


def test_who_stops_asking_is_no_candidate_any_more(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(first) as one, living(second) as two:
            term = await one.lead()
            with pytest.raises(NotLeader):
                await two.ask(Campaign(resource="kernel"))
            await two_is_able(one)
            await eventually(lambda: not one.leaser.driver.facts.candidates["n2"].eligible, "its wish has passed")
            await one.ask(Closing(resource="kernel", token=term.token))
            await one.ask(Withdraw(resource="kernel", token=term.token, reason="locked"))
            await eventually(lambda: ("follower", "", 1) in two.roles(), "the other one knows that nobody leads")
            assert not second.token()
            (shown,) = (await two.ask(GetLeadership(resource="kernel"), "api")).leaderships
            assert (shown.node, shown.reason, shown.epoch) == ("", "locked", 1)
            assert two.roles().count(("follower", "", 1)) == 1, "it is told once, with the reason"

    asyncio.run(main())


def test_an_app_stays_where_it_was_and_begins_where_the_kernel_is_led(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(first) as one, living(second) as two:
            await one.lead()
            await eventually(lambda: ("follower", "n1", 1) in two.roles(), "the follower knows who leads")
            with pytest.raises(NotLeader) as refused:
                await two.ask(Campaign(resource="app:blog"), "apps")
            assert refused.value.leader is not None and refused.value.leader.node == "n1"
            term = await one.lead("app:blog")
            await one.ask(Withdraw(resource="app:blog", token=term.token), "apps")
            await eventually(lambda: "app:blog" in two.leaser.records(), "the follower has seen it")
            with pytest.raises(NotLeader, match="at home on n1"):
                await two.ask(Campaign(resource="app:blog"), "apps")
            assert (await one.lead("app:blog")).epoch == 2

    asyncio.run(main())


def test_who_was_taken_out_ends_what_it_leads_once_that_has_stopped_and_leads_nothing_more(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        container = subprocess.Popen(["sleep", "60"])
        try:
            async with living(first) as one, living(second) as two:
                await two.lead()
                app = await two.lead("app:blog")
                armed = leash_table.entry_of("blog1", "app:blog", app.token, app.epoch, pid=container.pid, cgroup="")
                leash_table.write(second.paths.leash, armed)
                await eventually(lambda: second.page().hard_at < clock.FOREVER, "its taker is acknowledged")
                async with opened(home.etcd) as client:
                    await client.transact(Transaction((), (Delete(f"{home.prefix}node/n2"),)), 5)
                await eventually(lambda: not second.gate.holds("app:blog"), "nothing of the app starts any more")
                await eventually(lambda: "kernel" not in second.page().terms, "the kernel is released")
                assert (await one.lead()).epoch == 2
                assert one.leaser.driver.state.view.sid("n2"), "its session is there while its container lives"
                with pytest.raises(NotLeader, match="taken out of the cluster"):
                    await two.ask(Campaign(resource="kernel"))
                with pytest.raises(NotLeader, match="taken out of the cluster"):
                    await two.ask(Campaign(resource="app:blog"), "apps")
                container.kill()
                container.wait()
                await eventually(lambda: not one.leaser.driver.state.view.sid("n2"), "its session has ended")
                await eventually(lambda: second.page().terms == {}, "nothing is led")
                assert not one.leaser.driver.state.view.epochs["app:blog"].value.held
                await eventually(lambda: "taken out" in two.module.healths[-1][1], "its health says why")
        finally:
            container.kill()
            container.wait()

    asyncio.run(main())


def test_another_machine_that_has_its_name_is_not_taken_for_itself(home: House) -> None:
    async def main() -> None:
        (node,) = await home.begin(1)
        async with living(node) as live:
            await live.lead()
            async with opened(home.etcd) as client:
                other = KnownMember(address="10.77.0.9", client_url="https://10.77.0.9:2379", rpc="10.77.0.9:7444")
                await seed.put_node(client, home.prefix, "n1", other)
            await eventually(lambda: not node.token(), "it leads no more")
            with pytest.raises(NotLeader, match="taken out"):
                await live.ask(Campaign(resource="kernel"))

    asyncio.run(main())


def test_members_are_changed_where_the_kernel_is_led_and_another_node_says_where_that_is(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(first) as one, living(second) as two:
            await eventually(lambda: two.leaser.driver.state.session, "it has a session")
            with pytest.raises(NoLeader, match="nobody leads kernel"):
                await two.ask(RemoveMember(node="n9"), "api")
            await one.lead()
            await eventually(lambda: two.leaser.hint("kernel"), "it knows who leads")
            with pytest.raises(NotLeader) as refusal:
                await two.ask(RemoveMember(node="n9"), "api")
            assert refusal.value.leader is not None and refusal.value.leader.node == "n1"
            with pytest.raises(NotFound, match="n9 is no member"):
                await one.ask(RemoveMember(node="n9"), "api")

    asyncio.run(main())


def test_all_that_etcd_says_of_a_member_is_noted_for_the_next_start(home: House) -> None:
    async def main() -> None:
        first, _ = await home.begin(2)
        async with living(first):
            await eventually(lambda: members_file.read(first.paths).keys() == {"n1", "n2"}, "both are noted")
        assert members_file.read(first.paths)["n2"] == KnownMember(
            address="10.77.0.2", client_url=home.etcd.members[1].settings.client_url, rpc="10.77.0.2:7444",
            api_url="http://10.77.0.2:8080",
        )  # fmt: skip

    asyncio.run(main())


def test_the_session_of_another_machine_that_has_its_name_is_left_alone(home: House) -> None:
    async def main() -> None:
        (node,) = await home.begin(1)
        other = KnownMember(address="10.77.0.9", client_url="https://10.77.0.9:2379", rpc="10.77.0.9:7444")
        session = wire.encode(SessionRecord(0, "boot", 1, SPAN_S))
        async with opened(home.etcd) as client:
            await seed.put_node(client, home.prefix, "n1", other)
            await client.transact(Transaction((), (Put(f"{home.prefix}sess/n1", session),)), 5)
        async with living(node) as live:
            await eventually(lambda: live.leaser.driver.state.view.sid("n1"), "it has seen the session")
            with pytest.raises(AssertionError):
                await eventually(lambda: not live.leaser.driver.state.view.sid("n1"), "it is ended", 1.5)

    asyncio.run(main())


def test_the_apps_of_a_node_that_was_taken_out_begin_anew_once_its_session_has_ended(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(first) as one:
            async with living(second) as two:
                await two.lead()
                await two.lead("app:blog")
                await eventually(lambda: second.page().hard_at < clock.FOREVER, "its taker is acknowledged")
            async with opened(home.etcd) as client:
                await client.transact(Transaction((), (Delete(f"{home.prefix}node/n2"),)), 5)
            await eventually(lambda: "n2" not in one.leaser.driver.facts.nodes, "it is heard of")
            with pytest.raises(NotLeader, match="at home on n2"):
                await one.ask(Campaign(resource="app:blog"), "apps")
            await one.lead()
            assert (await one.lead("app:blog")).epoch == 2

    asyncio.run(main())


def test_without_quorum_nobody_leads_beyond_the_deadline_and_all_say_why(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(first) as one, living(second) as two:
            term = await one.lead()
            await eventually(lambda: first.page().hard_at < clock.FOREVER, "its taker is acknowledged")
            for member in home.etcd.members[1:]:
                member.freeze()
            await eventually(lambda: not first.token(), "the term is over", SPAN_S + 1)
            for live in (one, two):
                await eventually(lambda live=live: says_unavailable(live), "it says that the store is away")
                await eventually(lambda live=live: live.module.healths[-1][0] is Level.ERROR, "its health says so, too")
            for member in home.etcd.members[1:]:
                member.thaw()

            async def led_again() -> bool:
                await says_unavailable(one)
                return first.token() > term.token or second.token() > term.token

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
            await eventually(lambda: holder.page().hard_at < clock.FOREVER, "its taker is acknowledged")
            local = home.etcd.members[index % 3]
            local.kill() if fault == "kill" else local.freeze()
            before = holder.page().hard_at
            await eventually(lambda: holder.page().hard_at > before + SPAN_S, "it beats on", 2 * SPAN_S)
            assert holder.token() == term.token
            (shown,) = (await live.ask(GetLeadership(resource="kernel"), "api")).leaderships
            assert (shown.node, shown.epoch) == (holder.name, 1)

    asyncio.run(main())


async def says_unavailable(live) -> bool:  # type: ignore[no-untyped-def]
    with contextlib.suppress(NotLeader, NoLeader):
        try:
            await live.ask(Campaign(resource="kernel"))
        except StoreUnavailable:
            return True
    return False


async def two_is_able(one) -> None:  # type: ignore[no-untyped-def]
    def able() -> bool:
        return any(each.node == "n2" and each.eligible for each in one.leaser.candidates("kernel"))

    await eventually(able, "the leader knows that n2 could lead")

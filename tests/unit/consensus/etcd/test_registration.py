"""Who may lead, on real etcd: whoever is listed, able and asks; and what becomes of what others had."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from piccolod.errors import NoLeader, NotFound, NotLeader
from piccolod.leadership import leash_table
from piccolod.leadership.keys import SessionRecord
from piccolod.leadership.placement import Standing
from piccolod.protocol.cluster import KnownMember, RemoveMember
from piccolod.protocol.consensus import Campaign, Closing, GetHistory, GetLeadership, Stand, Withdraw
from services.consensus import members_file, seed, wire
from services.consensus.etcd.transaction import Delete, Put, Transaction
from tests.unit.consensus.etcd.conftest import eventually, opened
from tests.unit.consensus.etcd.member import SPAN_S, House, living


def test_a_node_whose_persistence_stays_dead_gives_the_kernel_up(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            await one.lead()
            one.module.peers.instance = lambda _name: ""
            one.module.drain = asyncio.Event().wait  # type: ignore[assignment]
            assert (await two.lead()).epoch == 2
            assert not one.node.token()
            (_, over, _) = (await two.ask(GetHistory(resource="kernel"), "api")).changes
            assert (over.from_node, over.to_node, over.reason) == ("n1", "", "unhealthy")

    asyncio.run(main())


def test_who_stops_asking_is_no_candidate_any_more(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            term = await one.lead()
            await two.stands_by(one)
            await eventually(lambda: not one.leaser.driver.facts.candidates["n2"].eligible, "its wish has passed")
            await one.ask(Closing(resource="kernel", token=term.token))
            await one.ask(Withdraw(resource="kernel", token=term.token, reason="locked"))
            await eventually(lambda: ("follower", "", 1) in two.roles(), "the other one knows that nobody leads")
            assert not two.node.token()
            (shown,) = (await two.ask(GetLeadership(resource="kernel"), "api")).leaderships
            assert (shown.node, shown.reason, shown.epoch) == ("", "locked", 1)
            assert two.roles().count(("follower", "", 1)) == 1, "it is told once, with the reason"

    asyncio.run(main())


def test_who_was_taken_out_ends_what_it_leads_once_that_has_stopped_and_leads_nothing_more(home: House) -> None:
    async def main() -> None:
        container = subprocess.Popen(["sleep", "60"])
        try:
            async with home.two() as (one, two):
                await two.lead()
                app = await two.lead("app:blog")
                armed = leash_table.entry_of("blog1", "app:blog", app.token, app.epoch, pid=container.pid, cgroup="")
                leash_table.write(two.node.paths.leash, armed)
                await two.has_takers()
                async with opened(home.etcd) as client:
                    await client.transact(Transaction((), (Delete(f"{home.prefix}node/n2"),)), 5)
                await eventually(lambda: not two.node.gate.holds("app:blog"), "nothing of the app starts any more")
                await eventually(lambda: "kernel" not in two.node.page().terms, "the kernel is released")
                assert (await one.lead()).epoch == 2
                assert one.leaser.driver.state.view.sid("n2"), "its session is there while its container lives"
                with pytest.raises(NotLeader, match="taken out of the cluster"):
                    await two.ask(Campaign(resource="kernel"))
                with pytest.raises(NotLeader, match="taken out of the cluster"):
                    await two.ask(Campaign(resource="app:blog"), "apps")
                container.kill()
                container.wait()
                await eventually(lambda: not one.leaser.driver.state.view.sid("n2"), "its session has ended")
                await eventually(lambda: two.node.page().terms == {}, "nothing is led")
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
                await two.has_takers()
            async with opened(home.etcd) as client:
                await client.transact(Transaction((), (Delete(f"{home.prefix}node/n2"),)), 5)
            await eventually(lambda: "n2" not in one.leaser.driver.facts.nodes, "it is heard of")
            await one.ask(Stand(apps={"blog": Standing()}), "apps")
            with pytest.raises(NotLeader, match="n2 leads app:blog"):
                await one.ask(Campaign(resource="app:blog"), "apps")
            await one.lead()
            assert (await one.lead("app:blog")).epoch == 2

    asyncio.run(main())

"""A drained node, on real etcd: what it leads goes to others, and it takes nothing over until that is ended."""

from __future__ import annotations

import asyncio

import pytest

from piccolod.errors import Conflict, NoLeader, NotFound, NotLeader
from piccolod.leadership.placement import Standing
from piccolod.protocol.cluster import Draining, Staying
from piccolod.protocol.consensus import (
    Campaign,
    Closing,
    DrainNode,
    GetHistory,
    GetLeadership,
    GetStandings,
    Release,
    Stand,
    Withdraw,
)
from piccolod.protocol.log import Drained
from tests.unit.consensus.etcd.conftest import eventually
from tests.unit.consensus.etcd.member import SPAN_S, House, Live, leading, living


async def drain(by: Live, node: str, *, on: bool = True) -> None:
    await by.ask(DrainNode(node=node, on=on, author="admin"), "api")


def left(by: Live, node: str) -> tuple[Staying, ...] | None:
    found = by.leaser.drain_of(node)
    return None if found is None else found.left


def test_a_drained_node_hands_the_kernel_over_and_says_how_far_it_is(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            await one.lead()
            await two.stands_by(one)
            await drain(two, "n1")
            await eventually(two.node.token, "the other one leads")
            await eventually(lambda: left(one, "n1") == left(two, "n1") == (), "nothing is left, as both say")
            assert left(two, "n2") is None
            shown = two.leaser.drain_of("n1")
            assert isinstance(shown, Draining) and shown.author == "admin"
            (change, *_) = (await two.ask(GetHistory(resource="kernel"), "api")).changes
            assert (change.reason, change.from_node, change.to_node) == ("drain", "n1", "n2")

    asyncio.run(main())


def test_a_drained_node_takes_nothing_over_until_that_is_ended(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(second) as two:
            async with leading(first, two) as one:
                await drain(one, "n2")
                await eventually(lambda: left(two, "n2") is not None, "it has heard of it")
                with pytest.raises(Conflict, match="no other node"):
                    await one.ask(Release(resource="kernel"), "api")
                await two.ask(Stand(apps={"blog": Standing()}), "apps")
                (shown,) = (await one.ask(GetLeadership(resource="kernel"), "api")).leaderships
                assert [each.reason for each in shown.candidates if each.node == "n2"] == ["it is drained"]
                told = (await two.ask(GetStandings(), "apps")).nodes["n2"]["blog"]
                assert told.reason == "it is drained"
            with pytest.raises(AssertionError):
                await two.lead(within_s=SPAN_S + 3)
            assert not two.node.token("app:blog")
            with pytest.raises(NoLeader, match="drained"):
                await two.ask(Campaign(resource="kernel"))
            await drain(two, "n2", on=False)
            assert (await two.lead()).epoch == 2
            await two.lead("app:blog")

    asyncio.run(main())


def test_a_drain_that_is_ordered_while_consensus_is_dead_is_done_by_its_next_life(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(second) as two:
            async with leading(first, two):
                pass
            await drain(two, "n1")
            assert first.token(), "its term is on the page still"
            async with living(first) as one:
                await eventually(two.node.token, "the other one leads", SPAN_S + 5)
                assert left(one, "n1") == ()
                (change, *_) = (await two.ask(GetHistory(resource="kernel"), "api")).changes
                assert change.reason == "drain"

    asyncio.run(main())


def test_a_drained_node_whose_consensus_begins_anew_takes_nothing_that_is_free(home: House) -> None:
    async def main() -> None:
        first, second = await home.begin(2)
        async with living(second) as two:
            async with leading(first, two) as one:
                await drain(one, "n2")
                await eventually(lambda: left(two, "n2") is not None, "it has heard of it")
                token = one.node.token()
                await one.ask(Closing(resource="kernel", token=token))
                await one.ask(Withdraw(resource="kernel", token=token, reason="released"))
        async with living(second) as two:
            with pytest.raises(AssertionError):
                await two.lead(within_s=3.0)
            changes = (await two.ask(GetHistory(resource="kernel"), "api")).changes
            assert {change.to_node for change in changes} == {"n1", ""}

    asyncio.run(main())


def test_of_two_drains_at_once_one_is_told_of_the_other(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            for live in (one, two):
                await eventually(lambda live=live: len(live.leaser.driver.state.view.sessions) == 2, "both are seen")  # type: ignore[misc]
            done = await asyncio.gather(drain(one, "n2"), drain(two, "n1"), return_exceptions=True)
            assert sorted(type(each).__name__ for each in done) == ["Conflict", "NoneType"]
            await eventually(lambda: bool(one.leaser.driver.facts.drained), "it is seen")
            assert len(one.leaser.driver.facts.drained) == 1

    asyncio.run(main())


def test_a_move_of_a_drain_that_failed_says_why_where_it_was_tried(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            await one.lead()
            await two.stands_by(one)

            async def never() -> Drained:
                await asyncio.sleep(60)
                raise AssertionError

            one.module.drain = never
            await drain(two, "n1")

            async def failed() -> Staying | None:
                with pytest.raises(NotLeader):  # who asks no more for seconds does not stand by any more
                    await two.ask(Campaign(resource="kernel"))
                (stays,) = left(one, "n1") or (Staying(resource="", reason=""),)
                return stays if "stays here" in stays.reason else None

            stays = await eventually(failed, "it has failed", 15)
            assert stays.resource == "kernel" and "tried again in" in stays.reason
            assert one.node.token(), "and it leads on"

    asyncio.run(main())


def test_what_no_other_node_could_lead_stays_and_says_why(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            await one.lead("app:blog")
            await two.in_session()
            await eventually(lambda: "n2" in two.leaser.driver.state.view.sessions, "it knows that itself")
            one.stands["blog"] = Standing(at_home=True)
            await one.ask(Stand(apps=one.stands), "apps")
            await two.ask(Stand(apps={"blog": Standing(at_home=True)}), "apps")
            await drain(two, "n1")
            stays = Staying(resource="app:blog", reason="n2: the app's data is on n1")
            await eventually(lambda: left(one, "n1") == left(two, "n1") == (stays,), "both say why")
            assert one.node.token("app:blog"), "and it is led as before"

    asyncio.run(main())


def test_a_drain_that_makes_no_sense_is_refused(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            await one.lead()
            await two.in_session()
            with pytest.raises(NotFound, match="n9"):
                await drain(one, "n9")
            await drain(one, "n1")
            await drain(two, "n1")
            await eventually(lambda: left(two, "n1") is not None, "both know")
            with pytest.raises(Conflict, match="no other node is alive"):
                await drain(two, "n2")
            await drain(two, "n1", on=False)
            await drain(two, "n1", on=False)
            assert left(two, "n1") is None

    asyncio.run(main())

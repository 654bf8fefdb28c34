"""Which node leads an app, on real etcd: the one whom the assignment names, at once; another one when that one cannot."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from piccolod import clock
from piccolod.errors import Busy, NotLeader
from piccolod.leadership.placement import Standing
from piccolod.protocol.consensus import Campaign, GetLeadership, GetStandings, GetWhy, Stand, TellPhases, Withdraw
from services.consensus.placing import UNHEARD_S
from tests.unit.consensus.etcd.conftest import eventually
from tests.unit.consensus.etcd.member import SPAN_S, House, Live, living

ABLE = Standing()


async def stand(live: Live, **apps: Standing) -> None:
    await live.ask(Stand(apps=apps), "apps")


async def heard(by: Live, node: str, *apps: str) -> None:
    """`by` knows how a node stands to these apps."""

    async def known() -> bool:
        return set(apps) <= (await by.ask(GetStandings(), "apps")).nodes.get(node, {}).keys()

    await eventually(known, f"{by.node.name} has heard {node}")


def leader(live: Live, app: str) -> str:
    record = live.leaser.records().get(f"app:{app}")
    return record.node if record is not None and record.held else ""


async def keep_standing(live: Live, **apps: Standing) -> None:
    """As the module `apps` does, which says it again each second."""
    while True:
        await stand(live, **apps)
        await asyncio.sleep(0.5)


def test_the_apps_of_a_lost_node_are_taken_by_those_whom_the_assignment_names(home: House) -> None:
    async def main() -> None:
        nodes = await home.begin(3)
        apps = {f"app{number}": ABLE for number in range(8)}
        async with AsyncExitStack() as stack:
            lives = [await stack.enter_async_context(living(node)) for node in nodes[1:]]
            async with living(nodes[0]) as lost:
                await lost.lead()
                await stand(lost, **apps)
                for app in apps:
                    await eventually(lambda app=app: leader(lost, app) == "n1", f"n1 leads {app}")  # type: ignore[misc]
                tasks = [asyncio.create_task(keep_standing(live, **apps)) for live in lives]
                for live in lives:
                    for other in ("n2", "n3"):
                        await heard(live, other, *apps)
                await lost.has_takers()
            two, _ = lives
            await eventually(lambda: all(leader(two, app) in ("n2", "n3") for app in apps), "all are led again", SPAN_S + 5)
            counts = [sum(leader(two, app) == name for app in apps) for name in ("n2", "n3")]
            assert counts == [4, 4]
            history = (await two.ask(GetWhy(resource="app:app0"), "api")).history
            assert (history[0].reason, history[0].from_node) == ("expired", "n1")
            for task in tasks:
                task.cancel()

    asyncio.run(main())


def test_who_cannot_lead_an_app_is_not_waited_for(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            await one.lead()
            await stand(one, blog=Standing(reason="the image is not there"))
            await stand(two, blog=ABLE)
            await eventually(lambda: leader(one, "blog") == "n2", "who can leads it")
            (shown,) = (await one.ask(GetLeadership(resource="app:blog"), "api")).leaderships
            assert [(each.node, each.eligible, each.reason) for each in shown.candidates] == [
                ("n1", False, "the image is not there"), ("n2", True, "leads it"),
            ]  # fmt: skip

    asyncio.run(main())


def test_what_was_just_installed_begins_beside_the_kernel(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            await two.lead()
            await eventually(lambda: ("follower", "n2", 1) in one.roles(), "the follower knows who leads")
            await stand(one, blog=ABLE)
            await stand(two, blog=ABLE)
            await eventually(lambda: leader(one, "blog"), "it is led")
            assert leader(one, "blog") == "n2"

    asyncio.run(main())


def test_the_history_tells_how_long_an_app_took_to_its_first_client(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            await one.lead()
            await two.in_session()
            term = await two.lead("app:blog")
            at = {"started": clock.now() + 0.2, "ready": clock.now() + 0.3, "routed": clock.now() + 0.3}
            await two.ask(TellPhases(resource="app:blog", token=term.token + 1, at={"started": 1.0}), "apps")
            await two.ask(TellPhases(resource="app:blog", token=term.token, at=at), "apps")
            phases = (await one.ask(GetWhy(resource="app:blog"), "api")).history[0].phases
            assert list(phases) == ["claimed", "started", "ready", "routed"]
            assert 200 <= phases["started"] < 2000 and 50 < phases["ready"] <= 100.1
            await two.ask(TellPhases(resource="app:blog", token=term.token, at={"started": 1.0}), "apps")
            assert (await one.ask(GetWhy(resource="app:blog"), "api")).history[0].phases == phases, "once"

    asyncio.run(main())


def test_an_app_begins_where_its_manifest_prefers_it_whoever_speaks_first(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            await one.lead()
            liked = Standing(prefer=("n2",))
            await stand(one, blog=liked)
            await asyncio.sleep(0.2)
            await stand(two, blog=liked)
            await eventually(lambda: leader(one, "blog") != "", "it is led")
            assert leader(one, "blog") == "n2"

    asyncio.run(main())


def test_an_app_does_not_wait_for_a_preferred_node_that_is_not_there(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, _):
            await one.lead()
            await stand(one, blog=Standing(prefer=("n9", "n1")))
            began = clock.now()
            await eventually(lambda: leader(one, "blog") == "n1", "it is led")
            assert clock.now() - began < UNHEARD_S

    asyncio.run(main())


def test_an_app_with_data_is_led_by_its_last_leader_alone(home: House) -> None:
    async def main() -> None:
        bound = Standing(at_home=True)
        async with home.two() as (one, two):
            await one.lead()
            term = await one.lead("app:diary")
            await stand(one, diary=bound)
            await stand(two, diary=bound)
            await heard(two, "n1", "diary")
            await heard(one, "n2", "diary")
            await one.ask(Withdraw(resource="app:diary", token=term.token), "apps")
            await eventually(lambda: not leader(two, "diary"), "nobody leads it")
            with pytest.raises(NotLeader, match="at home on n1"):
                await two.ask(Campaign(resource="app:diary"), "apps")
            (shown,) = (await one.ask(GetLeadership(resource="app:diary"), "api")).leaderships
            assert ("n2", "the app's data is on n1") in [(each.node, each.reason) for each in shown.candidates]
            await stand(one, diary=bound)
            await eventually(lambda: leader(two, "diary") == "n1", "its last leader has it again")

    asyncio.run(main())


def test_before_it_is_said_how_a_node_stands_to_an_app_it_leads_it_not(home: House) -> None:
    """It may have data, which nobody but the app's own module knows of."""

    async def main() -> None:
        async with home.two() as (one, two):
            await one.lead()
            term = await one.lead("app:diary")
            await eventually(lambda: leader(two, "diary") == "n1", "it is led")
            await one.ask(Withdraw(resource="app:diary", token=term.token), "apps")
            await eventually(lambda: not leader(two, "diary"), "nobody leads it")
            with pytest.raises(Busy, match="not said yet"):
                await two.ask(Campaign(resource="app:diary"), "apps")
            assert leader(two, "diary") == ""

    asyncio.run(main())


def test_who_says_nothing_more_claims_nothing_more(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            await one.lead()
            await stand(two, blog=Standing(reason="the node is locked"))
            await stand(one, blog=ABLE, wiki=ABLE)
            await eventually(lambda: leader(one, "blog") and leader(one, "wiki"), "both are led")
            await stand(two, blog=ABLE)
            await asyncio.sleep(3.5)  # longer than its word holds
            assert two.leaser.standings()["n2"] == {}
            term = one.leaser.records()["app:blog"]
            await stand(one, wiki=ABLE)
            await one.ask(Withdraw(resource="app:blog", token=term.token), "apps")
            await asyncio.sleep(1.0)
            assert leader(one, "blog") == ""
            assert leader(one, "wiki") == "n1", "what is held goes on"

    asyncio.run(main())

"""Planned moves of the kernel between members of a cluster, on real etcd: handed over, given up, withdrawn, held back."""

from __future__ import annotations

import asyncio

import pytest

from piccolod import clock
from piccolod.errors import Busy, Conflict, Exists, NotFound
from piccolod.protocol.consensus import Campaign, Closing, GetHistory, GetLeadership, Pause, Release, Switchover, Withdraw
from piccolod.protocol.log import Drained
from tests.unit.consensus.etcd.conftest import eventually
from tests.unit.consensus.etcd.member import SPAN_S, House, leading, living


def test_a_switchover_hands_the_kernel_over_after_the_drain(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            term = await one.lead()
            open_at_drain: list[int] = []

            async def drain() -> Drained:
                open_at_drain.append(one.node.token())
                with pytest.raises(Busy):
                    await one.ask(Campaign(resource="kernel"))
                return Drained(rev=0, digest=b"")

            one.module.drain = drain
            await two.stands_by(one)
            led = await one.ask(Switchover(resource="kernel", to="n2"), "api")
            assert (led.node, led.epoch, led.reason) == ("n2", 2, "switchover")
            assert open_at_drain == [0], "its gate is shut before it is drained"
            await eventually(lambda: two.node.token() > term.token, "the other one acts")
            assert not one.node.token()
            (change, _) = (await two.ask(GetHistory(resource="kernel"), "api")).changes
            assert (change.from_node, change.to_node, change.reason) == ("n1", "n2", "switchover")

    asyncio.run(main())


def test_the_phases_of_a_switchover_are_as_long_as_nobody_led(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            await one.lead()
            await two.stands_by(one)

            async def drain() -> Drained:
                await asyncio.sleep(0.2)
                return Drained(rev=0, digest=b"")

            async def pause_ms() -> float:
                while one.node.token():
                    await asyncio.sleep(0.002)
                began_at = clock.now()
                while not two.node.token():
                    await asyncio.sleep(0.002)
                return (clock.now() - began_at) * 1000

            async def phases() -> dict[str, float]:
                (change, _) = (await one.ask(GetHistory(resource="kernel"), "api")).changes
                return change.phases if "claimed" in change.phases else {}

            one.module.drain = drain
            pausing = asyncio.create_task(pause_ms())
            await one.ask(Switchover(resource="kernel", to="n2"), "api")
            took_ms = await pausing
            told = await eventually(phases, "the new leader tells how long it took")
            print(f"paused {took_ms:.1f} ms, told {told}")
            assert list(told) == ["closing", "claimed"] and told["closing"] >= 200
            assert sum(told.values()) == pytest.approx(took_ms, abs=150)

    asyncio.run(main())


def test_a_switchover_that_is_not_drained_in_time_is_taken_back(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            term = await one.lead()
            await two.stands_by(one)
            one.module.drain = asyncio.Event().wait  # type: ignore[assignment]
            with pytest.raises(Conflict, match="stays here"):
                await one.ask(Switchover(resource="kernel", to="n2"), "api")
            assert one.node.token() == term.token and not two.node.token()

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
        async with home.two() as (one, two):
            await one.lead()
            await two.stands_by(one)
            assert (await one.ask(Release(resource="kernel"), "api")).node == "n2"
            await eventually(two.node.token, "the other one acts")

    asyncio.run(main())


def test_a_withdrawn_term_is_free_at_once_for_who_asks(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            term = await one.lead()
            await one.has_takers()
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
            async with leading(first, two) as one:
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
            async with leading(first, two) as one:
                one.module.stop_all = True
                asyncio.get_running_loop().call_later(0.1, one.module.peers.__dict__.update, {"instance": lambda _name: ""})
                stopped_at = clock.now()
            await eventually(second.token, "the other one leads")
            assert clock.now() - stopped_at < 1.0, "nobody waits for a span"
            (_, over, _) = (await two.ask(GetHistory(resource="kernel"), "api")).changes
            assert over.reason == "drain"

    asyncio.run(main())

"""Writes while no term is open: they wait for one, are told who leads, or that nobody does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from piccolod.errors import Locked, NoLeader, NotLeader

from .house import until
from .members import Members, with_members


def test_a_write_that_crosses_a_switchover_is_parked_and_told_the_new_leader(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1, n2 = members.leader("n1"), members.node("n2")
        await n1.put("a", 1)
        n1.gate.closing = True
        writing = await n1.parked("a", 2)
        n1.gate.token = None
        n2.lead()
        n1.leader = members.etcd.hint()
        with pytest.raises(NotLeader) as caught:
            await writing
        assert caught.value.leader == members.etcd.hint()

    with_members(tmp_path, work)


def test_a_write_that_crosses_a_switchover_that_is_given_up_is_made(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        n1.gate.closing = True
        writing = await n1.parked("a", 1)
        n1.gate.closing = False
        assert await writing == 1

    with_members(tmp_path, work)


def test_consensus_that_refuses_before_it_sent_and_knows_no_leader_parks_the_write_too(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        members.etcd.release()
        writing = await n1.parked("a", 1)
        n1.lead()
        assert await writing == 1

    with_members(tmp_path, work)


def test_a_write_under_an_older_term_of_this_very_node_waits_for_the_newer_one_on_the_page(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        await n1.put("a", 1)
        newer = members.etcd.elect("n1")
        writing = await n1.parked("a", 2)
        n1.gate.token = newer
        assert await writing == 2

    with_members(tmp_path, work)


def test_consensus_that_says_that_nobody_leads_parks_the_write_as_well(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        ask, refusals = n1.consensus.ask, 0

        async def refuse_twice(request: object, *, timeout_s: float) -> object:
            nonlocal refusals
            if type(request).__name__ == "Append" and refusals < 2:
                refusals += 1
                raise NoLeader("nobody leads")
            return await ask(request, timeout_s=timeout_s)

        n1.commits._point._ask = refuse_twice  # type: ignore[attr-defined]
        assert await n1.put("a", 1) == 1
        assert refusals == 2

    with_members(tmp_path, work)


def test_a_parked_write_is_told_after_the_patience_that_nobody_leads(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        n1.commits._park_s = 0.1
        n1.gate.closing = True
        with pytest.raises(NoLeader) as caught:
            await n1.put("a", 1)
        assert caught.value.retry_after_s is not None

    with_members(tmp_path, work)


def test_a_drain_waits_for_what_is_under_way_and_parks_what_comes(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        await n1.put("a", 0)
        n1.consensus.slow = asyncio.Event()
        writing = asyncio.ensure_future(n1.put("a", 1))
        await until(lambda: n1.commits._writing, "it is under way")
        draining = asyncio.ensure_future(n1.commits.hold(1.0))
        late = asyncio.ensure_future(n1.put("b", 1))
        await asyncio.wait([draining], timeout=0.05)
        assert not draining.done()
        n1.consensus.slow.set()
        await draining
        assert await writing == 2
        assert members.etcd.head_rev == 2
        assert not late.done(), "parked though the gate is open"
        assert await late == 3

    with_members(tmp_path, work)


def test_a_lock_ends_what_is_under_way_and_refuses_what_is_parked(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        n1.gate.closing = True
        parked = await n1.parked("a", 1)
        await n1.commits.close()
        with pytest.raises(Locked):
            await parked
        assert members.etcd.head_rev == 0

    with_members(tmp_path, work)

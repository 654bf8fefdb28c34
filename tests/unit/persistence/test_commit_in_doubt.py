"""A write to the cluster's log whose answer was lost: read, settled by the next one, or told as unknown; never made twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from piccolod.errors import NotLeader, OutcomeUnknown, StoreUnavailable
from services.persistence import cluster_commit

from .house import until
from .members import Members, with_members


@pytest.fixture
def soon_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays unknown is told after 0.2 s."""
    monkeypatch.setattr(cluster_commit, "RESOLVE_S", 0.2)


@pytest.mark.parametrize("fate", ["made", "lost"])
def test_an_unknown_outcome_is_read_and_the_caller_hears_nothing_of_it(tmp_path: Path, fate: str) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        await n1.put("a", 1)
        n1.consensus.unknown.append(fate)
        assert await n1.put("b", 1) == 2
        assert (members.etcd.head_rev, n1.rev) == (2, 2)
        assert await n1.put("c", 1) == 3

    with_members(tmp_path, work)


def test_an_unknown_append_that_comes_late_is_no_second_write(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        n1.consensus.unknown.append("late")
        assert await n1.put("a", 1, idem="k") == 1
        n1.consensus.arrive()
        assert await n1.put("a", 1, idem="k") == 1
        assert members.etcd.head_rev == 1

    with_members(tmp_path, work)


def test_of_a_write_that_stays_unknown_its_caller_is_told_so_and_its_key_resolves_it(tmp_path: Path, soon_told: None) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        await n1.put("a", 0)
        writing = await n1.doubtful("a", 1, idem="k")
        with pytest.raises(OutcomeUnknown):
            await writing
        assert n1.rev == 1, "what is not known to be is not shown"
        with pytest.raises(StoreUnavailable):
            await n1.put("b", 1)
        n1.consensus.arrive()
        n1.consensus.cut_off = False
        assert await n1.put("a", 1, idem="k") == 2, "the first time it was sent"
        assert await n1.put("b", 1) == 3

    with_members(tmp_path, work)


def test_after_an_unknown_write_the_next_one_settles_it_either_way(tmp_path: Path, soon_told: None) -> None:
    """Both compare the same head: once the later one is taken the earlier one can never be."""

    async def work(members: Members) -> None:
        n1 = members.leader()
        writing = await n1.doubtful("a", "doubtful")
        with pytest.raises(OutcomeUnknown):
            await writing
        n1.consensus.cut_off = False
        assert await n1.put("b", 1) == 1
        n1.consensus.arrive()
        assert members.etcd.head_rev == 1
        assert await n1.put("c", 1) == 2

    with_members(tmp_path, work)


def test_an_unknown_write_of_a_term_that_ended_was_made_or_never_will_be(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1, n2 = members.leader("n1"), members.node("n2")
        await n1.put("a", 1)
        for fate, head in (("made", 2), ("lost", 2)):
            n1.consensus.slow = asyncio.Event()
            n1.consensus.unknown.append(fate)
            writing = asyncio.ensure_future(n1.put("a", fate))
            await until(lambda: type(n1.consensus.asked[-1]).__name__ == "Append", "it is sent")
            if fate == "lost":
                n2.lead()
                n1.leader = members.etcd.hint()
            n1.consensus.slow.set()
            if fate == "made":
                assert await writing == 2
            else:
                with pytest.raises(NotLeader) as caught:
                    await writing
                assert caught.value.leader is not None and caught.value.leader.node == "n2"
            n1.consensus.arrive()
            assert members.etcd.head_rev == head

    with_members(tmp_path, work)


def test_an_unknown_write_that_the_log_went_on_without_is_told_as_not_written(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1, n2 = members.leader("n1"), members.node("n2")
        await n1.put("a", 1)
        writing = await n1.doubtful("a", "never")
        n2.lead()
        assert await n2.put("b", 1) == 2
        assert await n2.put("c", 1) == 3  # the head is beyond the rev of the write in doubt
        n1.leader = members.etcd.hint()
        n1.consensus.cut_off = False
        n1.consensus.arrive()
        with pytest.raises(NotLeader) as caught:
            await writing
        assert caught.value.leader is not None and caught.value.leader.node == "n2"
        assert n1.documents() == n2.documents()

    with_members(tmp_path, work)


def test_an_unknown_write_that_the_log_went_on_with_is_acknowledged(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1, n2 = members.leader("n1"), members.node("n2")
        writing = await n1.doubtful("a", "made")
        n1.consensus.arrive()
        n2.lead()
        assert await n2.put("b", 1) == 2
        n1.consensus.cut_off = False
        assert await writing == 1

    with_members(tmp_path, work)


def test_a_drain_does_not_wait_for_a_write_that_is_in_doubt(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        writing = await n1.doubtful("a", 1)
        began = asyncio.get_running_loop().time()
        await n1.commits.hold(2.0)
        assert asyncio.get_running_loop().time() - began < 0.1
        assert not writing.done()
        n1.consensus.cut_off = False
        assert await writing == 1

    with_members(tmp_path, work)

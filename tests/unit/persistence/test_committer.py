"""Many writers, one disk: shared transactions, and a gate that is asked before, during and after."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import structlog

from piccolod.errors import Conflict, Locked, NotLeader, PiccoloError, StoreUnavailable, TermOver
from piccolod.leadership.gate import Token
from services.persistence import committer
from services.persistence.committer import Committer
from services.persistence.ledger import Folded, Item, Write
from services.persistence.local_commit import LocalCommit
from services.persistence.state import put
from services.persistence.verify import survey

from .conftest import CLUSTER, Bench, used


class SwitchedGate:
    """Open until `shut_after` more looks."""

    def __init__(self) -> None:
        self.token = Token(1, 1, 7)
        self.looks = 0
        self.shut_after = 10**9

    def check(self, resource: str) -> Token:
        assert resource == "kernel"
        self.looks += 1
        if self.looks > self.shut_after:
            raise TermOver(resource, "the deadline has passed")
        return self.token

    def still(self, resource: str, token: Token) -> None:
        if self.check(resource) != token:
            raise TermOver(resource, "another term has begun")


class Desk:
    def __init__(self, bench: Bench) -> None:
        self.gate = SwitchedGate()
        self.seen: list[int] = []
        self.transactions: list[int] = []
        self.troubles: list[PiccoloError | None] = []
        log = structlog.get_logger()
        self.point = LocalCommit(bench.store, self.gate, self._on_commit, self.troubles.append, log)
        self.committer = Committer(bench.store, self.point, self.gate, asyncio.ensure_future, log)

    def _on_commit(self, folded: Sequence[Folded]) -> None:
        self.transactions.append(len(folded))
        self.seen += [one.rev for one in folded]

    async def put(self, id: str, value: Any, *, idem: str = "", expect: dict[tuple[str, str], int] | None = None) -> int:
        outcome = await self.committer.commit(Write([put("apps", id, {"v": value})], expect or {}, "admin", idem, 1))
        return outcome.rev


def with_desk(bench: Bench, work: Callable[[Desk], Awaitable[None]]) -> None:
    async def run() -> None:
        desk = Desk(bench)
        try:
            await work(desk)
        finally:
            await desk.committer.close()

    asyncio.run(run())


def test_writers_at_once_share_transactions_and_each_has_a_rev_of_its_own(bench: Bench) -> None:
    async def work(desk: Desk) -> None:
        revs = await asyncio.gather(*(desk.put(f"a{n}", n) for n in range(100)))
        assert sorted(revs) == list(range(1, 101))
        assert desk.seen == list(range(1, 101))
        assert len(desk.transactions) < 20, desk.transactions

    with_desk(bench, work)
    bench.reopen()
    assert bench.store.state.rev == 100


def test_a_refused_write_takes_none_of_its_neighbours_with_it(bench: Bench) -> None:
    async def work(desk: Desk) -> None:
        results = await asyncio.gather(
            desk.put("a", 1), desk.put("a", 2, expect={("apps", "a"): 9}), desk.put("b", 1), return_exceptions=True
        )
        assert [results[0], results[2]] == [1, 2]
        assert isinstance(results[1], Conflict)

    with_desk(bench, work)


def test_of_writers_that_expect_the_same_document_absent_exactly_one_wins(bench: Bench) -> None:
    async def work(desk: Desk) -> None:
        results = await asyncio.gather(
            *(desk.put("port", n, expect={("apps", "port"): 0}) for n in range(20)), return_exceptions=True
        )
        assert len([r for r in results if r == 1]) == 1
        assert len([r for r in results if isinstance(r, Conflict)]) == 19

    with_desk(bench, work)


def test_who_is_told_of_a_conflict_can_read_what_it_conflicts_with(bench: Bench) -> None:
    async def work(desk: Desk) -> None:
        async def loser() -> None:
            with pytest.raises(Conflict):
                await desk.put("port", "mine", expect={("apps", "port"): 0})
            assert bench.store.state.get("apps", "port") is not None, "the other write is not visible yet"

        await asyncio.gather(desk.put("port", "theirs", expect={("apps", "port"): 0}), loser(), loser())

    with_desk(bench, work)


def test_the_same_write_sent_twice_at_once_is_one_rev(bench: Bench) -> None:
    async def work(desk: Desk) -> None:
        assert await asyncio.gather(*(desk.put("a", n, idem="k") for n in range(5))) == [1] * 5

    with_desk(bench, work)


@pytest.mark.parametrize(("looks", "kept"), [(0, 0), (1, 0), (2, 1)])
def test_a_gate_that_shuts_before_during_or_after_the_write_acknowledges_nothing(bench: Bench, looks: int, kept: int) -> None:
    """Before and in the transaction nothing is written; after it the rev is there, and nobody was told so."""

    async def work(desk: Desk) -> None:
        desk.gate.shut_after = looks
        with pytest.raises(NotLeader):
            await desk.put("a", 1)
        assert bench.store.state.rev == kept
        desk.gate.shut_after = 10**9
        assert await desk.put("b", 1) == kept + 1

    with_desk(bench, work)
    assert survey(bench.db, CLUSTER, bench.key).ok


def test_what_is_under_way_at_a_lock_is_ended_and_what_comes_later_is_refused(bench: Bench) -> None:
    async def work(desk: Desk) -> None:
        writes = [asyncio.ensure_future(desk.put(f"a{n}", n)) for n in range(10)]
        await asyncio.sleep(0)
        await desk.committer.close()
        assert await asyncio.gather(*writes) == list(range(1, 11))
        with pytest.raises(Locked):
            await desk.put("late", 1)

    with_desk(bench, work)


def test_a_lock_waits_for_a_probe_of_the_disk_and_hears_nothing_of_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on, order = threading.Event(), threading.Event(), []

    def probe() -> None:
        began.set()
        assert go_on.wait(20)
        order.append("probed")

    close = bench.store.close
    monkeypatch.setattr(bench.store, "probe", probe)
    monkeypatch.setattr(bench.store, "close", lambda: (order.append("closed"), close()))

    async def work(desk: Desk) -> None:
        desk.point._trouble = StoreUnavailable("the disk refused a write")
        asking = asyncio.ensure_future(desk.committer.recover())
        await asyncio.to_thread(began.wait, 20)
        asking.cancel()  # as the end of the module does
        closing = asyncio.ensure_future(desk.committer.close())
        for _ in range(20):  # all that it can do without the probe
            await asyncio.sleep(0)
        go_on.set()
        await closing
        assert order == ["probed", "closed"]
        assert desk.troubles == []

    with_desk(bench, work)


def test_a_caller_that_gives_up_takes_no_one_elses_answer_away(bench: Bench) -> None:
    async def work(desk: Desk) -> None:
        impatient = asyncio.ensure_future(desk.put("a", 1))
        patient = asyncio.ensure_future(desk.put("b", 1))
        await asyncio.sleep(0)
        impatient.cancel()
        assert await patient in (1, 2)
        assert await desk.put("c", 1) in (2, 3)

    with_desk(bench, work)


def test_a_queue_that_never_ends_is_bounded(bench: Bench) -> None:
    async def work(desk: Desk) -> None:
        results = await asyncio.gather(*(desk.put(f"a{n}", n) for n in range(1500)), return_exceptions=True)
        refused = [r for r in results if isinstance(r, StoreUnavailable)]
        assert 0 < len(refused) < 600
        assert len([r for r in results if isinstance(r, int)]) == 1500 - len(refused)

    with_desk(bench, work)


def test_a_long_series_of_writes_leaves_snapshots_behind_it(bench: Bench) -> None:
    async def work(desk: Desk) -> None:
        for start in range(0, 2200, 200):
            await asyncio.gather(*(desk.put(f"a{n}", n) for n in range(start, start + 200)))

    with_desk(bench, work)
    bench.reopen()
    assert bench.store.state.rev == 2200
    assert bench.store.snapshot_rev >= 2000


def test_a_failed_disk_refuses_names_its_trouble_and_recovers_by_itself(bench: Bench) -> None:
    """RLIMIT_FSIZE in a process of its own, as in test_disk."""
    import resource
    import signal
    from pathlib import Path

    from .test_disk import in_own_process

    bench.put("a", 0)
    bench.close()

    def in_child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        bench.reopen()
        bench.put("a", "x" * 9000)

        limit = used(Path(f"{bench.db}-wal")) + 5000

        async def work(desk: Desk) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            with pytest.raises(StoreUnavailable):
                await desk.put("a", "y" * 50_000)
            assert bench.store.state.rev == 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert await desk.put("a", "z" * 50_000) == 3
            assert desk.troubles[0] is not None
            assert desk.troubles[-1] is None

        with_desk(bench, work)

    in_own_process(in_child)
    bench.reopen()
    assert bench.store.state.rev == 3


def test_writers_that_keep_coming_do_not_hold_up_who_asks_a_sick_disk_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def settle() -> list[Item]:
        nonlocal asked
        asked += 1
        time.sleep(0.02)
        raise StoreUnavailable("the disk does not answer")

    monkeypatch.setattr(bench.store, "settle", settle)
    monkeypatch.setattr(committer, "_RECOVER_WAIT_S", 0.1)

    async def work(desk: Desk) -> None:
        bench.store.in_doubt, stop = True, False

        async def write_on(id: str) -> None:
            while not stop:
                with contextlib.suppress(StoreUnavailable):
                    await desk.put(id, 1)

        writers = [asyncio.ensure_future(write_on("a"))]
        while asked < 2:  # once before the batch of the first, and once for it: the next comes while that goes on
            await asyncio.sleep(0.001)
        writers.append(asyncio.ensure_future(write_on("b")))
        try:
            async with asyncio.timeout(5):
                await desk.committer.recover()
        finally:
            stop = True
            await asyncio.gather(*writers)

    with_desk(bench, work)

"""The driver: the order of what a step asks for, and what happens when the page, the disk or the code refuses. No etcd here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from piccolod import clock
from piccolod.leadership import events
from piccolod.leadership.actions import Action, Opened, Over
from piccolod.leadership.events import Campaign, Members, Memory, Started
from piccolod.leadership.page import Page
from piccolod.leadership.state import Config
from piccolod.leadership.timing import FAST
from piccolod.leadership.transactions import Outcome, Transaction
from services.consensus import driver as driving
from services.consensus.driver import Driver
from services.consensus.etcd.lease import Lease
from services.consensus.etcd_store import Attempt, Snapshot
from tests.sim.store import Store
from tests.sim.world import World


class FakeStore:
    """The simulated store in the place of etcd."""

    prefix = "/p/"

    def __init__(self) -> None:
        self.store = Store(World(0), FAST.election_s)
        self.client = None
        self.sent: list[Transaction] = []

    async def commit(self, transaction: Transaction, within_s: float) -> Attempt:
        await asyncio.sleep(0)
        self.sent.append(transaction)
        outcome = self.store.commit(transaction)
        return Attempt(outcome, self.store.header if outcome in (Outcome.COMMITTED, Outcome.REFUSED) else None)

    async def read(self, within_s: float) -> Snapshot:
        await asyncio.sleep(0)
        return Snapshot(self.store.header, self.store.read())


class Bench:
    """One driver with everything that it writes to; `order` is what was done, in turn."""

    def __init__(self) -> None:
        self.etcd = FakeStore()
        self.order: list[str] = []
        self.pages: list[Page] = []
        self.refusing = 0  # writes of the page that are refused
        self.disk = asyncio.Event()
        self.disk.set()
        self.disk_error: OSError | None = None
        self.heard: list[Action] = []
        self.driver = Driver(
            Config("n1", "10.77.0.1", FAST), self.etcd, self, self, self, clock.now,  # type: ignore[arg-type]
            SimpleNamespace(info=self._say, warning=self._say, error=self._say), self.heard.append, lambda: None,
        )  # fmt: skip
        self.driver._memory = SimpleNamespace(write=self._remember)  # type: ignore[assignment]
        self.loop = asyncio.get_running_loop()

    def write(self, page: Page) -> Page:
        if self.refusing:
            self.refusing -= 1
            raise ValueError("the session's deadline has passed")
        self.order.append("page" + "".join(f" {name}" for name in page.terms))
        self.pages.append(page)
        return page

    def _remember(self, memory: Memory) -> None:
        if self.disk_error is not None:
            raise self.disk_error
        asyncio.run_coroutine_threadsafe(self.disk.wait(), self.loop).result()
        self.order.append("remembered")

    async def prove(self, resource: str) -> None:
        self.order.append(f"proven {resource}")

    def _say(self, event: str, **facts: Any) -> None:
        self.order.append(event)

    async def lead(self) -> None:
        self.driver.feed(Members(frozenset({"n1"})))
        self.driver.feed(Campaign("kernel"))
        assert await self.driver.until(lambda: "kernel" in self.driver.state.terms, 3)


@pytest.fixture(autouse=True)
def without_etcd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    async def grant(client: Any, ttl_s: int) -> Lease:
        return Lease(granted.grant(60.0), ttl_s, clock.now())

    async def forever(*_: Any) -> None:
        await asyncio.Event().wait()

    granted: Store

    class Known(FakeStore):
        def __init__(self) -> None:
            super().__init__()
            nonlocal granted
            granted = self.store

    monkeypatch.setattr(driving.lease, "grant", grant)
    monkeypatch.setattr(Driver, "_renew", forever)
    monkeypatch.setattr(Driver, "_watch", forever)
    monkeypatch.setitem(globals(), "FakeStore", Known)
    yield


def run(test: Callable[[Bench], Awaitable[None]], first: Started | None = None) -> None:
    async def main() -> None:
        bench = Bench()
        task = asyncio.create_task(bench.driver.run(first or Started("boot", None, None, ())))
        try:
            await test(bench)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ExceptionGroup):
                await task

    asyncio.run(main())


def test_what_was_seen_of_etcd_is_on_the_disk_before_the_page_shows_a_term() -> None:
    async def test(bench: Bench) -> None:
        await bench.lead()
        shown = bench.order.index("page kernel")
        assert bench.order[shown - 1] == "remembered"

    run(test)


def test_while_the_disk_does_not_answer_nothing_opens_and_nobody_is_told_that_it_had() -> None:
    async def test(bench: Bench) -> None:
        await bench.driver.until(lambda: bench.driver.state.session is not None, 3)
        bench.disk.clear()
        bench.driver.feed(Members(frozenset({"n1"})))
        bench.driver.feed(Campaign("kernel"))
        assert not await bench.driver.until(lambda: "kernel" in bench.driver.state.terms, 0.3)
        claimed = [each for each in bench.etcd.sent if each.kind == "claim"]
        assert claimed, "etcd has given it already"
        assert not any("kernel" in page.terms for page in bench.pages)
        assert not any(isinstance(each, Opened) for each in bench.heard)
        bench.disk.set()
        assert await bench.driver.until(lambda: "kernel" in bench.driver.state.terms, 1)
        assert "kernel" in bench.pages[-1].terms

    run(test)


def test_a_disk_that_refuses_is_named_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "_DISK_AGAIN_S", 0.02)

    async def test(bench: Bench) -> None:
        bench.disk_error = OSError(28, "No space left on device")
        assert not await bench.driver.until(lambda: bench.driver.state.session is not None, 0.3)
        assert "No space left" in bench.driver.blocked
        bench.disk_error = None
        await bench.lead()
        assert bench.driver.blocked == ""

    run(test)


def test_a_page_that_refuses_a_deadline_ends_the_session_at_once() -> None:
    async def test(bench: Bench) -> None:
        await bench.lead()
        bench.refusing = 1
        bench.driver.feed(events.Close("kernel", bench.driver.state.terms["kernel"].token))
        assert any(isinstance(each, Over) and each.resource == "kernel" for each in bench.heard)
        assert not bench.pages[-1].terms
        assert bench.driver.state.session is None
        await bench.driver.until(lambda: "proven kernel" in bench.order, 1)
        assert await bench.driver.until(lambda: bench.driver.state.session is not None, 5), "another one begins"
        kinds = [each.kind.value for each in bench.etcd.sent]
        assert kinds == ["session", "claim", "end", "session"]

    run(test)


def test_what_goes_wrong_inside_ends_the_process() -> None:
    async def main() -> None:
        bench = Bench()
        task = asyncio.create_task(bench.driver.run(Started("boot", None, None, ())))
        await bench.driver.until(lambda: bench.driver.state.session is not None, 3)

        def broken(_page: Page) -> Page:
            raise RuntimeError("a bug")

        bench.write = broken  # type: ignore[method-assign]
        bench.driver.feed(Members(frozenset({"n1", "n2"})))
        bench.driver.feed(Campaign("kernel"))
        with pytest.raises(ExceptionGroup) as died:
            await task
        assert died.value.subgroup(RuntimeError)

    asyncio.run(main())


def test_a_tick_comes_before_an_event_that_was_long_in_coming() -> None:
    async def test(bench: Bench) -> None:
        await bench.lead()
        bench.driver._ticked_at = clock.now() - 1
        seen = bench.driver.state.supervisor_at
        bench.driver.feed(events.Applied(5))
        assert bench.driver.state.supervisor_at > seen
        assert bench.driver.state.applied_rev == 5

    run(test)

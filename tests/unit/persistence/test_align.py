"""The term of `kernel` follows the store; a store that is let go of for a moment is not given up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from piccolod.leadership.page import Term
from piccolod.paths import Paths
from piccolod.protocol.consensus import Campaign, Closing, Withdraw
from piccolod.protocol.persistence import StoreReport
from services.persistence.service import Service
from services.persistence.vault import Condition
from tests.unit.leadership.conftest import a_page


class Bus:
    def __init__(self, folder: Path) -> None:
        self.paths = Paths(state=folder / "state", run=folder / "run")
        self.log = structlog.get_logger()
        self.asked: list[Any] = []

    def deposited(self, name: str) -> None: ...
    def health(self, *_: object) -> None: ...

    async def call(self, request: Any, timeout_s: float) -> None:
        self.asked.append(request)


@pytest.fixture
def bus(tmp_path: Path) -> Bus:
    return Bus(tmp_path)


def service_of(bus: Bus, *, closing: bool = False) -> Service:
    """One that is locked and still holds the term."""
    made = Service(bus)  # type: ignore[arg-type]
    page = a_page({"kernel": Term(7, 1, closing)})
    made._page = SimpleNamespace(read=lambda: page)  # type: ignore[assignment]
    made._gate = SimpleNamespace(holds=lambda _: not closing)  # type: ignore[assignment]
    made._vault.condition = Condition.LOCKED
    made._vault.opened.set()
    return made


def test_a_locked_store_gives_the_term_up(bus: Bus) -> None:
    assert asyncio.run(service_of(bus)._align())
    assert [type(request) for request in bus.asked] == [Closing, Withdraw]
    assert bus.asked[1].reason == "locked"


def test_the_term_lives_on_when_the_module_stops(bus: Bus) -> None:
    async def work() -> None:
        service = service_of(bus)
        await service.stop()
        assert not await service._align()

    asyncio.run(work())
    assert bus.asked == []


def test_the_term_lives_on_through_a_repair(bus: Bus) -> None:
    async def work() -> None:
        service = service_of(bus)

        async def repair() -> StoreReport:
            assert not await service._align(), "a tick in the middle of it"
            return StoreReport(
                ok=True, file="", entries=0, first_rev=0, good_rev=0, head_rev=0, problem="", set_aside="", lost_revs=0
            )

        service._vault.repair = repair  # type: ignore[method-assign]
        await service._repair()
        assert bus.asked == []
        assert await service._align(), "and after it the term follows again"

    asyncio.run(work())
    assert [type(request) for request in bus.asked] == [Closing, Withdraw]


def test_of_a_term_that_a_former_life_closed_no_reason_is_invented(bus: Bus) -> None:
    service = service_of(bus, closing=True)
    service._vault.store = SimpleNamespace()  # type: ignore[assignment]
    assert asyncio.run(service._align())
    assert [type(request) for request in bus.asked] == [Withdraw, Campaign]
    assert bus.asked[0].reason == "released"

"""What apps know of their public ports."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from piccolod.errors import Invalid, Problem
from piccolod.kernel import ROUTERS
from piccolod.protocol.base import Request
from piccolod.protocol.router import RegisterAppRoute, RouteState, RouteStates
from services.apps import routes
from services.apps.routes import Routes


def state(reason: str) -> RouteState:
    return RouteState(app="a", listener="web", mode="closed", public_port=80, target="", epoch=1, reason=reason)


def test_a_port_that_cannot_be_opened_is_known_as_unbound_until_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "port 80 cannot be opened: Address already in use"
    monkeypatch.setattr(routes, "_TROUBLED_S", 0.02)
    told: list[str] = []

    async def answer(request: Request[RouteStates], worker: str) -> RouteStates:
        return RouteStates(routes=(state(reason),))

    async def story() -> None:
        nonlocal reason
        table = Routes(answer, lambda *_: None, told.append)
        tasks = [asyncio.create_task(work) for work in table.tasks().values()]
        request = RegisterAppRoute(
            app="a", mode="local", epoch=1, resource="", token=0, leader_addr="", listeners=(), endpoints=()
        )
        async with asyncio.timeout(5.0):
            await table.set(request, 5.0)
            assert table.unbound("a") == {"web"}
            assert "Address already in use" in table.trouble("a")
            before, reason = len(told), ""
            while table.unbound("a"):
                await asyncio.sleep(0.01)
        assert table.trouble("a") == ""
        assert len(told) > before, "the app looks again"
        for task in tasks:
            task.cancel()

    asyncio.run(story())


def test_a_route_that_no_worker_will_ever_take_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_RETRY_S", 0.01)
    asked: list[str] = []
    refused: list[tuple[str, str, str]] = []

    async def answer(request: Request[RouteStates], worker: str) -> RouteStates:
        asked.append(worker)
        raise Invalid("it has 1 mistake", errors=(Problem("leader", "is not the name of a node"),))

    async def story() -> None:
        table = Routes(answer, lambda *told: refused.append(told), lambda _: None)
        tasks = [asyncio.create_task(work) for work in table.tasks().values()]
        request = RegisterAppRoute(app="a", mode="tunnel", epoch=1, resource="", token=0, listeners=())
        async with asyncio.timeout(5.0):
            await table.set(request, 0.01)
            while len(asked) < 3 * len(ROUTERS):
                await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()

    asyncio.run(story())
    assert sorted(refused) == [("a", worker, "is not the name of a node") for worker in sorted(ROUTERS)]


def test_the_epoch_of_a_tunnel_is_never_raised_to_be_heard() -> None:
    """It says whose term it is: a former leader's must stay unheard."""
    behind = RouteStates(routes=(state(""),))
    held = RegisterAppRoute(app="a", mode="hold", epoch=0, resource="", token=0, listeners=())
    assert routes._newer_epoch(held, behind) == behind.routes[0].epoch
    assert routes._newer_epoch(msgspec.structs.replace(held, mode="tunnel"), behind) == 0

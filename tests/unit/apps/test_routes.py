"""What apps know of their public ports."""

from __future__ import annotations

import asyncio

import pytest

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
        table = Routes(answer, told.append)
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

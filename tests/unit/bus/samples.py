"""Services for the tests of the bus: they use the names and rights of real rows of kernel.py."""

from __future__ import annotations

import asyncio

from piccolod.errors import NotFound, Problem
from piccolod.link import Link
from piccolod.module import Caller, Module, run
from piccolod.protocol.base import Level
from piccolod.protocol.events import Audit, HealthChanged, LockStateChanged, NodeStateChanged
from piccolod.protocol.telemetry import EventRecords, GetEvents, GetMetrics, MetricsText


class Telemetry:
    """Answers what its arguments ask for; counts how often it ran."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.runs = 0

    async def start(self) -> None:
        self.module.serve(GetEvents, self.events)
        self.module.serve(GetMetrics, self.metrics)
        self.module.health(Level.OK)

    async def stop(self) -> None: ...

    async def events(self, request: GetEvents, caller: Caller) -> EventRecords:
        self.runs += 1
        if request.type == "missing":
            raise NotFound("nothing there", hint="look elsewhere", errors=(Problem("a.b", "bad", 3, 4),))
        if request.type == "bug":
            raise KeyError("secret")
        if request.type == "unsendable":
            return EventRecords(events=(), last_id=object())  # type: ignore[arg-type]
        if request.type == "slow":
            await asyncio.sleep(30)
        return EventRecords(events=(), last_id=self.runs)

    async def metrics(self, request: GetMetrics, caller: Caller) -> MetricsText:
        return MetricsText(text=f"{caller.module} {caller.pid}")


class Consensus:
    """Publishes a numbered burst when it is told to by a command that does not exist elsewhere."""

    def __init__(self, module: Module) -> None:
        self.module = module

    async def start(self) -> None:
        self.module.publish(NodeStateChanged(node="n1", state="alive"))

    async def stop(self) -> None: ...


class Forger:
    """A router that claims that the store is unlocked and that persistence is ill; its own health comes last."""

    def __init__(self, module: Module) -> None:
        self.module = module

    async def start(self) -> None:
        self.module.publish(LockStateChanged(locked=False, initialized=True, rev=1))
        self.module.publish(Audit(actor="x", source="y", action="z", status=200, code="", request_id=""))
        self.module.publish(HealthChanged(component="persistence", level=Level.ERROR, reason="forged"))
        self.module.publish(HealthChanged(component=self.module.name, level=Level.OK, reason="last"))

    async def stop(self) -> None: ...


def telemetry(link: Link) -> None:
    run(link, Telemetry)


def consensus(link: Link) -> None:
    run(link, Consensus)


def forger(link: Link) -> None:
    run(link, Forger)

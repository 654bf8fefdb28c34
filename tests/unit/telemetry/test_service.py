from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from piccolod import clock, config
from piccolod.errors import Invalid, Unavailable
from piccolod.protocol.base import Event
from piccolod.protocol.events import AppStateChanged, Audit, ControlRevChanged
from piccolod.protocol.telemetry import GetEvents, GetMetrics
from services.telemetry.service import Service


class FakeModule:
    """Stands for the bus: delivers events and commands directly; nobody else answers."""

    def __init__(self, folder: Path) -> None:
        self.config = config.parse(f'[node]\nname = "n1"\nstate_dir = "{folder}/s"\nrun_dir = "{folder}/r"')
        self.paths = self.config.paths
        self.log = SimpleNamespace(error=lambda *_, **__: None)
        self.callbacks: dict[type, Callable[[Any], None]] = {}
        self.handlers: dict[type, Callable[..., Awaitable[Any]]] = {}
        self.resync: Callable[[], None] = lambda: None
        self.healths: list[tuple[str, str]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def on(self, kind: type, callback: Callable[[Any], None], key: str | None = None) -> None:
        self.callbacks[kind] = callback

    def on_resync(self, callback: Callable[[], None]) -> None:
        self.resync = callback

    def serve(self, kind: type, handler: Callable[..., Awaitable[Any]]) -> None:
        self.handlers[kind] = handler

    def health(self, level: Any, reason: str = "", role: str = "") -> None:
        self.healths.append((level.value, reason))

    def spawn(self, work: Any, *, name: str) -> asyncio.Task[None]:
        self.tasks.append(asyncio.get_running_loop().create_task(work))
        return self.tasks[-1]

    async def call(self, request: Any, *, timeout_s: float, target: str | None = None) -> Any:
        raise Unavailable("nobody is here")

    def tell(self, event: Event) -> None:
        self.callbacks[type(event)](event)

    async def ask(self, request: Any, within_s: float = 10.0) -> Any:
        caller = SimpleNamespace(module="api", deadline_at=clock.now() + within_s)
        return await self.handlers[type(request)](request, caller)


def live(folder: Path, work: Callable[[FakeModule, Service], Awaitable[Any]], kill: bool = False) -> Any:
    """One life of telemetry; `kill` leaves out its stop."""

    async def run() -> Any:
        module = FakeModule(folder)
        service = Service(module)  # type: ignore[arg-type]
        await service.start()
        try:
            return await asyncio.wait_for(work(module, service), 20)
        finally:
            if not kill:
                await service.stop()
            for task in module.tasks:
                task.cancel()
            await asyncio.gather(*module.tasks, return_exceptions=True)
            service._journal.close()

    return asyncio.run(run())


def app(state: str, name: str = "hello") -> AppStateChanged:
    return AppStateChanged(app=name, state=state, reason="")


def audit(actor: str = "root") -> Audit:
    return Audit(actor=actor, source="s", action="POST /x", status=200, code="", request_id="r")


async def states(module: FakeModule) -> list[Any]:
    return [event.body.get("state") for event in (await module.ask(GetEvents(limit=1000))).events]


def test_an_event_wakes_who_waits_for_it(tmp_path: Path) -> None:
    async def work(module: FakeModule, service: Service) -> None:
        asking = asyncio.ensure_future(module.ask(GetEvents(after=0, wait_s=8.0)))
        await asyncio.sleep(0)
        module.tell(app("running"))
        found = await asking
        assert [(event.id, event.type, event.key, event.node) for event in found.events] == [
            (1, "AppStateChanged", "hello", "n1")
        ]
        assert abs(found.events[0].at - clock.wall_ms()) < 5000

    live(tmp_path, work)


def test_who_waits_for_another_type_goes_on_waiting(tmp_path: Path) -> None:
    async def work(module: FakeModule, service: Service) -> None:
        asking = asyncio.ensure_future(module.ask(GetEvents(after=0, wait_s=8.0, type="Audit")))
        await asyncio.sleep(0)
        module.tell(app("running"))
        await module.ask(GetEvents(after=0, wait_s=8.0))
        assert not asking.done()
        module.tell(audit())
        assert [event.type for event in (await asking).events] == ["Audit"]

    live(tmp_path, work)


def test_a_wait_ends_before_its_caller_gives_up(tmp_path: Path) -> None:
    async def work(module: FakeModule, service: Service) -> None:
        found = await module.ask(GetEvents(after=0, wait_s=60.0), within_s=0.8)
        assert (found.events, found.last_id) == ((), 0)

    live(tmp_path, work)


def test_a_state_that_is_said_again_is_no_event_not_even_by_the_next_life(tmp_path: Path) -> None:
    async def first(module: FakeModule, service: Service) -> None:
        for state in ("starting", "running", "running"):
            module.tell(app(state))
        module.tell(audit())
        module.tell(audit())  # this one did happen twice

    async def second(module: FakeModule, service: Service) -> None:
        module.tell(app("running"))
        module.tell(app("stopped"))
        await service._recorder.flush()
        assert await states(module) == ["starting", "running", None, None, "stopped"]

    live(tmp_path, first)
    live(tmp_path, second)


def test_an_announced_rev_is_counted_and_not_kept(tmp_path: Path) -> None:
    async def work(module: FakeModule, service: Service) -> None:
        module.tell(ControlRevChanged(rev=3))
        await service._recorder.flush()
        assert (await module.ask(GetEvents())).events == ()
        assert 'piccolo_events_total{type="ControlRevChanged"} 1.0' in (await module.ask(GetMetrics())).text

    live(tmp_path, work)


def test_what_waits_is_written_by_a_stop(tmp_path: Path) -> None:
    async def first(module: FakeModule, service: Service) -> None:
        module.tell(app("running"))

    async def second(module: FakeModule, service: Service) -> None:
        assert await states(module) == ["running"]

    live(tmp_path, first)
    live(tmp_path, second)


def test_a_full_disk_is_named_and_what_waited_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.telemetry.recorder._AGAIN_S", 0.05)

    async def work(module: FakeModule, service: Service) -> None:
        real, full = service._journal.append, [True]

        def append(entries: Any) -> int:
            if full[0]:
                raise sqlite3.OperationalError("database or disk is full")
            return real(entries)

        monkeypatch.setattr(service._journal, "append", append)
        module.tell(app("running"))
        await until(lambda: module.healths[-1][0] == "WARN")
        assert "disk is full" in module.healths[-1][1]
        module.tell(app("stopped"))
        full[0] = False
        await until(lambda: module.healths[-1] == ("OK", ""))
        await service._recorder.flush()
        assert await states(module) == ["running", "stopped"]

    live(tmp_path, work)


def test_what_waits_for_a_full_disk_is_bounded_and_what_is_lost_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.telemetry.recorder._WAITING", 10)

    async def work(module: FakeModule, service: Service) -> None:
        real = service._journal.append
        monkeypatch.setattr(service._journal, "append", _full)
        for number in range(25):
            module.tell(app(f"s{number}"))
        await service._recorder.flush()
        monkeypatch.setattr(service._journal, "append", real)
        await service._recorder.flush()
        assert await states(module) == [f"s{number}" for number in range(15, 25)]
        assert "piccolo_journal_lost_total 15.0" in (await module.ask(GetMetrics())).text

    live(tmp_path, work)


def test_a_journal_that_gets_damaged_under_it_is_begun_anew_and_nothing_dies(tmp_path: Path) -> None:
    async def work(module: FakeModule, service: Service) -> None:
        module.tell(app("running"))
        await service._recorder.flush()
        with service._journal.file.open("r+b") as file:
            file.write(b"\xff" * 100)
        for suffix in ("-wal",):
            service._journal._base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            Path(f"{service._journal.file}{suffix}").unlink(missing_ok=True)
        await service._recorder.check()
        module.tell(app("stopped"))
        await until_written(module, "stopped")
        assert (await module.ask(GetEvents(limit=1))).events[0].id > 1

    live(tmp_path, work)


def test_a_damaged_journal_is_named_in_health(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "journal"
    folder.mkdir(parents=True)
    (folder / "events.db").write_bytes(b"no database" * 1000)

    async def work(module: FakeModule, service: Service) -> None:
        level, reason = module.healths[-1]
        assert level == "WARN"
        assert "events.db.corrupt-" in reason

    live(tmp_path, work)


def test_a_garbage_limit_is_refused(tmp_path: Path) -> None:
    async def work(module: FakeModule, service: Service) -> None:
        for limit in (0, -1, 1001):
            with pytest.raises(Invalid):
                await module.ask(GetEvents(limit=limit))

    live(tmp_path, work)


def test_metrics_come_even_when_nobody_else_answers(tmp_path: Path) -> None:
    async def work(module: FakeModule, service: Service) -> None:
        module.resync()
        shown = (await module.ask(GetMetrics())).text
        assert "piccolo_scrape_silent_modules 4.0" in shown
        assert "piccolo_bus_resyncs_total 1.0" in shown

    live(tmp_path, work)


def test_the_start_is_fast_with_a_long_journal(tmp_path: Path) -> None:
    async def fill(module: FakeModule, service: Service) -> None:
        from services.telemetry.journal import Entry

        for _ in range(20):
            service._journal.append([Entry("AppStateChanged", f"a{n % 50}", 1, "n", {"x": "y" * 200}) for n in range(1000)])

    async def nothing(module: FakeModule, service: Service) -> None: ...

    live(tmp_path, fill, kill=True)
    began_at = clock.now()
    live(tmp_path, nothing)
    assert clock.now() - began_at < 1.0


def _full(entries: Any) -> int:
    raise sqlite3.OperationalError("database or disk is full")


async def until(condition: Callable[[], object]) -> None:
    give_up_at = clock.now() + 10
    while not condition():
        assert clock.now() < give_up_at
        await asyncio.sleep(0.01)


async def until_written(module: FakeModule, state: str) -> None:
    give_up_at = clock.now() + 10
    while state not in await states(module):
        assert clock.now() < give_up_at
        await asyncio.sleep(0.02)

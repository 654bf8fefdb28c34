"""The service with a real gate, real gocryptfs and real mounts; only the bus is stood in for."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from piccolod import clock, config
from piccolod.errors import Busy, Invalid, Locked, NotFound, NotLeader, Unavailable
from piccolod.leadership.page import Page, PageWriter, Term, create
from piccolod.paths import Paths
from piccolod.protocol.base import Event, Level, Nothing, Request
from piccolod.protocol.events import LockStateChanged, VolumeStateChanged
from piccolod.protocol.persistence import ForgetVolumeKey, GetVolumeKey, VolumeKey
from piccolod.protocol.volumes import Attach, Detach, Ensure, ListVolumes, Purge, VolumeDocument
from services.volumes import gocryptfs
from services.volumes.service import AGAIN, DIED, Service
from tests.unit.volumes import seen

pytestmark = pytest.mark.root

MIB = 2**20


class Keys:
    """Stands for persistence."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], bytes] = {}
        self.locked = False

    async def answer(self, request: Request[Any]) -> Any:
        if self.locked:
            raise Locked("the control store is locked")
        assert isinstance(request, GetVolumeKey | ForgetVolumeKey)
        name = (request.app, request.volume)
        if isinstance(request, ForgetVolumeKey):
            if self.kept.pop(name, None) is None:
                raise NotFound("no such key")
            return Nothing()
        if name not in self.kept:
            if not request.create:
                raise NotFound(f"no key of {name}")
            self.kept[name] = os.urandom(32)
        return VolumeKey(key=self.kept[name])


class FakeModule:
    """Stands for the bus: keeps what was published, calls handlers directly."""

    def __init__(self, paths: Paths, keys: Keys, tasks: asyncio.TaskGroup, *, strict: bool = True) -> None:
        self.paths = paths
        self.config = config.parse(f"[apps]\nstrict = {str(strict).lower()}")
        say = lambda *_, **__: None  # noqa: E731
        self.log = SimpleNamespace(info=say, warning=say, error=say)
        self.published: list[VolumeStateChanged] = []
        self.judged: tuple[Level, str] = (Level.OK, "")
        self.stop_apps = False
        self._handlers: dict[type, Callable[..., Awaitable[Any]]] = {}
        self._callbacks: dict[type, Callable[[Any], None]] = {}
        self._keys, self._tasks = keys, tasks

    def serve(self, kind: type, handler: Callable[..., Awaitable[Any]]) -> None:
        self._handlers[kind] = handler

    def on(self, kind: type, callback: Callable[[Any], None], key: str | None = None) -> None:
        self._callbacks[kind] = callback

    def publish(self, event: Event) -> None:
        assert isinstance(event, VolumeStateChanged)
        self.published.append(event)

    def health(self, level: Level, reason: str = "", role: str = "") -> None:
        self.judged = (level, reason)

    def spawn(self, work: Any, *, name: str) -> asyncio.Task[None]:
        return self._tasks.create_task(work, name=name)

    async def call(self, request: Request[Any], **_: Any) -> Any:
        return await self._keys.answer(request)

    async def ask(self, request: Request[Any]) -> Any:
        return await self._handlers[type(request)](request, SimpleNamespace(module="apps"))

    def tell(self, event: Event) -> None:
        self._callbacks[type(event)](event)

    def states(self) -> list[tuple[str, str]]:
        return [(event.attached, event.reason) for event in self.published]


class Node:
    def __init__(self, paths: Paths) -> None:
        self.paths, self.keys = paths, Keys()
        create(paths.page)
        self._page = PageWriter(paths.page)

    def leads(self, **tokens: int) -> None:
        """The gate is open for these apps and no others."""
        terms = {f"app:{app}": Term(token, token) for app, token in tokens.items()}
        self._page.write(Page(0, 1, 1, 0, clock.boot_id(), clock.FOREVER, clock.FOREVER, terms))

    def live(self, work: Callable[[FakeModule], Awaitable[None]], *, strict: bool = True) -> None:
        """One life of volumes."""

        async def run() -> None:
            async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
                module = FakeModule(self.paths, self.keys, tasks, strict=strict)
                service = Service(module)  # type: ignore[arg-type]
                await service.start()
                try:
                    await work(module)
                finally:
                    await service.stop()
                    for task in asyncio.all_tasks() - {asyncio.current_task()}:
                        task.cancel()

        asyncio.run(run())


@pytest.fixture
def node(paths: Paths) -> Node:
    made = Node(paths)
    made.leads(notes=7)
    return made


async def until(condition: Callable[[], object], what: str) -> None:
    give_up_at = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < give_up_at, f"not within 15 s: {what}"
        await asyncio.sleep(0.01)


async def attach(module: FakeModule, volume: str = "data", token: int = 7, limit: int = 0) -> Any:
    await module.ask(Ensure(app="notes", volume=volume, size_limit_bytes=limit))
    return await module.ask(Attach(app="notes", volume=volume, token=token))


def write(document: VolumeDocument, text: str) -> None:
    (Path(document.path) / "note").write_text(text)


def read(document: VolumeDocument) -> str:
    return (Path(document.path) / "note").read_text()


def test_a_volume_is_made_attached_listed_and_detached(node: Node) -> None:
    async def work(module: FakeModule) -> None:
        document = await attach(module, limit=32 * MIB)
        assert (document.attached, document.size_limit_bytes) == ("rw", 32 * MIB)
        assert "enforced" in document.quota
        write(document, "a")
        (listed,) = (await module.ask(ListVolumes())).volumes
        assert (listed.app, listed.name, listed.attached, listed.path) == ("notes", "data", "rw", document.path)
        assert (await module.ask(ListVolumes(app="other"))).volumes == ()
        await module.ask(Detach(app="notes", volume="data"))
        await module.ask(Detach(app="notes", volume="data"))
        (listed,) = (await module.ask(ListVolumes())).volumes
        assert (listed.attached, listed.path) == ("no", "")
        assert module.states() == [("rw", ""), ("no", "")]

    node.live(work)


@pytest.mark.parametrize("tokens", [{}, {"notes": 8}, {"other": 7}], ids=["follower", "another term", "another app"])
def test_only_the_term_that_holds_the_gate_attaches(node: Node, tokens: dict[str, int]) -> None:
    async def work(module: FakeModule) -> None:
        await module.ask(Ensure(app="notes", volume="data"))
        node.leads(**tokens)
        with pytest.raises(NotLeader):
            await module.ask(Attach(app="notes", volume="data", token=7))
        assert module.states() == []
        assert seen.gocryptfs(node.paths.run.parent) == []

    node.live(work)


def test_two_attaches_at_once_are_one(node: Node) -> None:
    async def work(module: FakeModule) -> None:
        await module.ask(Ensure(app="notes", volume="data"))
        both = await asyncio.gather(*(module.ask(Attach(app="notes", volume="data", token=7)) for _ in range(2)))
        assert both[0].path == both[1].path
        assert len(seen.gocryptfs(node.paths.run.parent)) == 1
        assert module.states() == [("rw", "")]

    node.live(work)


def test_a_caller_that_gives_up_does_not_let_in_the_next_one(node: Node) -> None:
    async def work(module: FakeModule) -> None:
        await module.ask(Ensure(app="notes", volume="data"))
        impatient = asyncio.create_task(module.ask(Attach(app="notes", volume="data", token=7)))
        await asyncio.sleep(0)
        impatient.cancel()
        document = await module.ask(Attach(app="notes", volume="data", token=7))
        assert document.attached == "rw"
        assert len(seen.gocryptfs(node.paths.run.parent)) == 1

    node.live(work)


def test_a_killed_gocryptfs_is_replaced_and_announced(node: Node) -> None:
    async def work(module: FakeModule) -> None:
        document = await attach(module)
        write(document, "kept")
        (pid,) = seen.gocryptfs(node.paths.run.parent)
        seen.end(pid)
        await until(lambda: len(module.published) == 3, "the volume is announced again")
        assert module.states() == [("rw", ""), ("no", DIED), ("rw", AGAIN)]
        assert read(document) == "kept"

    node.live(work)


def test_a_killed_gocryptfs_of_a_term_that_is_over_stays_away(node: Node) -> None:
    async def work(module: FakeModule) -> None:
        document = await attach(module)
        node.leads()
        (pid,) = seen.gocryptfs(node.paths.run.parent)
        seen.end(pid)
        await until(lambda: not os.path.exists(document.path), "the dead mount goes away")
        await until(lambda: module.judged[0] is Level.ERROR, "health says so")
        assert module.states()[-1][0] == "no"
        assert seen.gocryptfs(node.paths.run.parent) == []

    node.live(work)


def test_the_next_life_adopts_what_is_attached(node: Node) -> None:
    paths: list[str] = []

    async def first(module: FakeModule) -> None:
        paths.append((await attach(module)).path)

    async def second(module: FakeModule) -> None:
        assert module.states() == [("rw", "")]
        assert seen.gocryptfs(node.paths.run.parent) == [pid]
        assert (await module.ask(Attach(app="notes", volume="data", token=7))).path == paths[0]
        seen.end(pid)
        await until(lambda: module.states()[-1] == ("rw", AGAIN), "an adopted one is watched, too")

    node.live(first)
    (pid,) = seen.gocryptfs(node.paths.run.parent)
    node.live(second)


def test_a_gocryptfs_that_died_between_two_lives_is_replaced(node: Node) -> None:
    async def first(module: FakeModule) -> None:
        await attach(module)

    async def second(module: FakeModule) -> None:
        await until(lambda: module.states()[-1:] == [("rw", AGAIN)], "the volume is there again")

    node.live(first)
    seen.end(*seen.gocryptfs(node.paths.run.parent))
    node.live(second)


def test_an_attached_volume_needs_no_key_while_the_store_is_locked(node: Node) -> None:
    async def work(module: FakeModule) -> None:
        await attach(module)
        node.keys.locked = True
        assert (await module.ask(Attach(app="notes", volume="data", token=7))).attached == "rw"
        await module.ask(Detach(app="notes", volume="data"))
        with pytest.raises(Locked):
            await module.ask(Attach(app="notes", volume="data", token=7))

    node.live(work)


def test_a_volume_whose_key_is_lost_is_not_given_a_new_one(node: Node) -> None:
    async def work(module: FakeModule) -> None:
        await module.ask(Ensure(app="notes", volume="data"))
        node.keys.kept.clear()
        await module.ask(Ensure(app="notes", volume="data"))
        with pytest.raises(NotFound):
            await module.ask(Attach(app="notes", volume="data", token=7))
        assert node.keys.kept == {}

    node.live(work)


def test_purge_deletes_the_volumes_of_one_app_and_their_keys(node: Node) -> None:
    async def work(module: FakeModule) -> None:
        for app in ("notes", "notes-2"):
            for volume in ("data", "cache"):
                await module.ask(Ensure(app=app, volume=volume))
        await module.ask(Attach(app="notes", volume="data", token=7))
        with pytest.raises(Busy):
            await module.ask(Purge(app="notes"))
        assert len((await module.ask(ListVolumes(app="notes"))).volumes) == 2
        await module.ask(Detach(app="notes", volume="data"))
        await module.ask(Purge(app="notes"))
        await module.ask(Purge(app="notes"))
        assert sorted(entry.name for entry in node.paths.volumes.iterdir()) == ["notes-2.cache", "notes-2.data"]
        assert sorted(node.keys.kept) == [("notes-2", "cache"), ("notes-2", "data")]

    node.live(work)


def test_a_purge_that_was_cut_off_is_finished_after_the_unlock(node: Node) -> None:
    async def first(module: FakeModule) -> None:
        await module.ask(Ensure(app="notes", volume="data"))
        node.keys.locked = True
        with pytest.raises(Locked):
            await module.ask(Purge(app="notes"))
        assert (await module.ask(ListVolumes())).volumes == ()

    async def second(module: FakeModule) -> None:
        node.keys.locked = False
        module.tell(LockStateChanged(locked=False, initialized=True, rev=1))
        await until(lambda: not list(node.paths.volumes.iterdir()), "the rest is deleted")
        assert node.keys.kept == {}

    node.live(first)
    node.live(second)


def test_a_volume_made_anew_keeps_its_key_when_the_old_purge_is_finished(node: Node) -> None:
    async def work(module: FakeModule) -> None:
        await module.ask(Ensure(app="notes", volume="data"))
        node.keys.locked = True
        with pytest.raises(Locked):
            await module.ask(Purge(app="notes"))
        node.keys.locked = False
        document = await attach(module)
        assert document.attached == "rw"
        module.tell(LockStateChanged(locked=False, initialized=True, rev=1))
        await module.ask(Detach(app="notes", volume="data"))
        assert (await module.ask(Attach(app="notes", volume="data", token=7))).attached == "rw"

    node.live(work)


@pytest.mark.parametrize("name", ["../x", "a b", ""])
def test_a_name_that_is_none_is_refused(node: Node, name: str) -> None:
    async def work(module: FakeModule) -> None:
        for request in (
            Ensure(app="notes", volume=name),
            Ensure(app=name, volume="data"),
            Detach(app="notes", volume=name),
            Purge(app=name),
        ):
            with pytest.raises(Invalid):
                await module.ask(request)

    node.live(work)


def test_health_names_what_is_not_installed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gocryptfs, "_PATH", "/nonexistent")

    async def work(module: FakeModule) -> None:
        await until(lambda: "gocryptfs is not installed" in module.judged[1], "health names gocryptfs")
        assert module.judged[0] is Level.WARN
        with pytest.raises(Unavailable, match="gocryptfs is not installed"):
            await module.ask(Ensure(app="notes", volume="data"))

    node.live(work)


def test_a_limit_that_is_not_enforced_stays_visible(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.volumes import image

    monkeypatch.setattr(image, "why_not", lambda: "it has no loop devices")

    async def work(module: FakeModule) -> None:
        document = await module.ask(Ensure(app="notes", volume="data", size_limit_bytes=32 * MIB))
        assert "not enforced: it has no loop devices" in document.quota

    async def later(module: FakeModule) -> None:
        await until(lambda: module.judged[0] is Level.WARN, "health warns")
        assert "notes.data: size_limit is not enforced" in module.judged[1]

    node.live(work, strict=False)
    node.live(later, strict=False)


def test_stopping_the_node_with_its_apps_detaches(node: Node) -> None:
    async def work(module: FakeModule) -> None:
        await attach(module)
        module.stop_apps = True

    node.live(work)
    assert seen.gocryptfs(node.paths.run.parent) == []

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from piccolod import clock, config
from piccolod.errors import Busy, Conflict, Forbidden, Invalid, NotFound
from piccolod.leadership import leash_table
from piccolod.leadership.page import PageReader, PageWriter, create
from piccolod.paths import Paths
from piccolod.protocol.base import Event, Level, Request
from piccolod.protocol.cluster import GetCluster
from piccolod.protocol.consensus import (
    Campaign,
    Closing,
    GetHistory,
    GetLeadership,
    GetWhy,
    Leadership,
    Term,
    Withdraw,
)
from piccolod.protocol.events import ControlRevChanged, ControlStoreCommit, LeadershipRoleChanged
from services.consensus.service import Service


class FakeModule:
    """Stands for the bus: keeps what was published, calls handlers directly."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.config = config.parse('[node]\nname = "n1"\naddress = "10.77.0.1"')
        self.log = SimpleNamespace(
            info=lambda *_, **__: None, warning=lambda *_, **__: None, error=lambda *_, **__: None
        )  # fmt: skip
        self.stop_all = False
        self.healths: list[tuple[Level, str]] = []
        self.published: list[Event] = []
        self.handlers: dict[type, Callable[..., Awaitable[Any]]] = {}
        self.callbacks: dict[type, Callable[[Any], None]] = {}

    def serve(self, kind: type, handler: Callable[..., Awaitable[Any]]) -> None:
        self.handlers[kind] = handler

    def on(self, kind: type, callback: Callable[[Any], None], key: str | None = None) -> None:
        self.callbacks[kind] = callback

    def publish(self, event: Event) -> None:
        self.published.append(event)

    def health(self, level: Level, reason: str = "", role: str = "") -> None:
        self.healths.append((level, reason))

    async def ask(self, request: Request[Any], caller: str = "apps") -> Any:
        return await self.handlers[type(request)](request, SimpleNamespace(module=caller))

    def roles(self) -> list[tuple[str, str, int, str]]:
        events = [event for event in self.published if isinstance(event, LeadershipRoleChanged)]
        return [(event.resource, event.role, event.epoch, event.reason) for event in events]


@pytest.fixture
def paths() -> Iterator[Paths]:
    folder = Path(tempfile.mkdtemp(prefix="cons"))
    made = Paths(state=folder / "state", run=folder / "run")
    made.leash.mkdir(parents=True)
    create(made.page)
    yield made
    shutil.rmtree(folder)


def live(paths: Paths, work: Callable[[FakeModule], Awaitable[Any]]) -> Any:
    """One life of consensus."""

    async def run() -> Any:
        module = FakeModule(paths)
        service = Service(module)  # type: ignore[arg-type]
        await service.start()
        try:
            return await work(module)
        finally:
            await service.stop()

    return asyncio.run(run())


async def lead(module: FakeModule, resource: str = "app:notes") -> Term:
    term = await module.ask(Campaign(resource=resource), "persistence" if resource == "kernel" else "apps")
    assert isinstance(term, Term)
    return term


async def shown(module: FakeModule, resource: str) -> Leadership:
    (leadership,) = (await module.ask(GetLeadership(resource=resource), "api")).leaderships
    assert isinstance(leadership, Leadership)
    return leadership


def test_a_campaign_is_on_the_page_and_announced_before_its_answer(paths: Paths) -> None:
    async def work(module: FakeModule) -> None:
        term = await lead(module)
        page = PageReader(paths.page).read()
        assert page is not None and page.terms["app:notes"].token == term.token
        assert module.roles() == [("app:notes", "leader", 1, "bootstrap")]
        event = next(event for event in module.published if isinstance(event, LeadershipRoleChanged))
        assert (event.node, event.address, event.token) == ("n1", "10.77.0.1", term.token)
        assert await lead(module) == term and len(module.roles()) == 1

    live(paths, work)


@pytest.mark.parametrize(
    ("resource", "caller"), [("kernel", "apps"), ("kernel", "api"), ("app:notes", "persistence"), ("app:notes", "router.0")]
)
def test_only_persistence_decides_for_the_kernel_and_only_apps_for_apps(paths: Paths, resource: str, caller: str) -> None:
    async def work(module: FakeModule) -> None:
        for request in (Campaign(resource=resource), Closing(resource=resource, token=1), Withdraw(resource=resource, token=1)):
            with pytest.raises(Forbidden, match=caller):
                await module.ask(request, caller)
        assert module.roles() == []

    live(paths, work)


def test_a_store_that_commits_in_a_cluster_is_granted_no_term_of_a_node_alone(paths: Paths) -> None:
    async def work(module: FakeModule) -> None:
        with pytest.raises(Conflict, match="member of the cluster c1, and this is a node alone"):
            await module.ask(Campaign(resource="kernel", cluster="c1"), "persistence")
        page = PageReader(paths.page).read()
        assert page is not None and page.terms == {}
        assert await module.ask(Campaign(resource="kernel"), "persistence")

    live(paths, work)


@pytest.mark.parametrize(
    "resource", ["", "app:", "app:Notes", "app:a\n", "kernel ", "notes", "app:" + "a" * 51, "app:-a", "app:a-"]
)
def test_what_is_no_resource_is_refused(paths: Paths, resource: str) -> None:
    async def work(module: FakeModule) -> None:
        with pytest.raises(Invalid):
            await module.ask(Campaign(resource=resource), "apps")

    live(paths, work)


def test_a_reason_that_does_not_exist_is_refused_and_ends_nothing(paths: Paths) -> None:
    async def work(module: FakeModule) -> None:
        term = await lead(module)
        with pytest.raises(Invalid, match="no reason"):
            await module.ask(Withdraw(resource="app:notes", token=term.token, reason="because"))
        assert (await shown(module, "app:notes")).role == "leader"

    live(paths, work)


def test_closing_then_withdrawn_then_led_again_is_announced_once_each(paths: Paths) -> None:
    async def work(module: FakeModule) -> None:
        term = await lead(module)
        for _ in range(2):
            await module.ask(Closing(resource="app:notes", token=term.token))
        with pytest.raises(Busy):
            await lead(module)
        for _ in range(2):
            await module.ask(Withdraw(resource="app:notes", token=term.token, reason="unhealthy"))
        assert (await lead(module)).epoch == 2
        assert module.roles() == [
            ("app:notes", "leader", 1, "bootstrap"),
            ("app:notes", "follower", 1, "unhealthy"),
            ("app:notes", "leader", 2, "unhealthy"),
        ]

    live(paths, work)


def test_a_term_whose_container_lives_is_not_ended_but_nothing_of_it_starts_any_more(paths: Paths) -> None:
    container = subprocess.Popen(["sleep", "1000"])

    async def work(module: FakeModule) -> None:
        term = await lead(module)
        entry = leash_table.entry_of("c1", "app:notes", term.token, term.epoch, pid=container.pid)
        leash_table.write(paths.leash, entry)
        withdraw = Withdraw(resource="app:notes", token=term.token)
        with pytest.raises(Busy, match="still runs in c1"):
            await module.ask(withdraw)
        page = PageReader(paths.page).read()
        assert page is not None and page.terms["app:notes"].closing
        container.send_signal(signal.SIGKILL)
        container.wait()
        await module.ask(withdraw)
        page = PageReader(paths.page).read()
        assert page is not None and not page.terms

    try:
        live(paths, work)
    finally:
        container.kill()
        container.wait()


def test_the_kernel_is_released_only_once_its_writes_had_time_to_drain(paths: Paths) -> None:
    async def work(module: FakeModule) -> None:
        term = await lead(module, "kernel")
        withdraw = Withdraw(resource="kernel", token=term.token, reason="locked")
        with pytest.raises(Conflict, match="drained"):
            await module.ask(withdraw, "persistence")
        assert (await shown(module, "kernel")).role == "leader"
        await module.ask(Closing(resource="kernel", token=term.token), "persistence")
        await module.ask(withdraw, "persistence")
        assert (await shown(module, "kernel")).role == "follower"

    live(paths, work)


def test_a_restart_repeats_the_same_roles_and_the_same_terms(paths: Paths) -> None:
    async def first(module: FakeModule) -> tuple[Term, Term]:
        over = await lead(module, "app:old")
        await module.ask(Withdraw(resource="app:old", token=over.token))
        return await lead(module), await lead(module, "kernel")

    async def second(module: FakeModule) -> None:
        assert sorted(module.roles()) == [
            ("app:notes", "leader", 1, "bootstrap"),
            ("app:old", "follower", 1, "released"),
            ("kernel", "leader", 1, "bootstrap"),
        ]
        assert (await lead(module), await lead(module, "kernel")) == terms
        assert len(module.roles()) == 3

    terms = live(paths, first)
    live(paths, second)


def test_a_consensus_that_is_still_dying_is_waited_for(paths: Paths) -> None:
    """A crashed supervisor's modules live on for a moment: there is one writer of the page at any time."""
    old = PageWriter(paths.page)

    async def work() -> None:
        service = Service(FakeModule(paths))  # type: ignore[arg-type]
        starting = asyncio.create_task(service.start())
        done, _ = await asyncio.wait([starting], timeout=0.2)
        assert not done
        old.close()
        await asyncio.wait_for(starting, 2)
        await service.stop()

    asyncio.run(work())


def test_the_list_shows_what_is_led_and_always_the_kernel(paths: Paths) -> None:
    async def work(module: FakeModule) -> None:
        (kernel,) = (await module.ask(GetLeadership(), "api")).leaderships
        assert (kernel.resource, kernel.role, kernel.node, kernel.epoch) == ("kernel", "follower", "", 0)
        await lead(module, "app:b")
        await lead(module, "app:a")
        over = await lead(module, "app:gone")
        await module.ask(Withdraw(resource="app:gone", token=over.token))
        listed = (await module.ask(GetLeadership(), "api")).leaderships
        assert [leadership.resource for leadership in listed] == ["kernel", "app:a", "app:b"]
        assert (await shown(module, "app:gone")).reason == "released"
        with pytest.raises(NotFound):
            await shown(module, "app:never")

    live(paths, work)


def test_a_leadership_that_never_runs_out_has_no_deadline(paths: Paths) -> None:
    async def work(module: FakeModule) -> None:
        term = await lead(module)
        leadership = await shown(module, "app:notes")
        assert leadership.deadline_s is None and leadership.token == term.token
        assert abs(leadership.since_ms - clock.wall_ms()) < 5000
        assert [(c.node, c.eligible) for c in leadership.candidates] == [("n1", True)]

    live(paths, work)


def test_why_answers_in_a_sentence_in_every_state(paths: Paths) -> None:
    async def why(module: FakeModule, resource: str = "app:notes") -> str:
        answer = await module.ask(GetWhy(resource=resource), "api")
        return str(answer.explanation)

    async def work(module: FakeModule) -> None:
        assert await why(module, "kernel") == "Nobody has led kernel yet."
        term = await lead(module)
        assert (await why(module)).startswith("n1 leads app:notes in epoch 1 since ")
        assert "does not run out" in await why(module)
        await module.ask(Closing(resource="app:notes", token=term.token))
        assert "being closed" in await why(module)
        await module.ask(Withdraw(resource="app:notes", token=term.token, reason="drain"))
        assert "epoch 1 ended at " in await why(module) and "(drain)" in await why(module)
        history = (await module.ask(GetWhy(resource="app:notes"), "api")).history
        assert [change.reason for change in history] == ["drain", "bootstrap"]

    live(paths, work)


@pytest.mark.parametrize("limit", [-1, 0, 1001])
def test_a_history_without_bound_is_refused(paths: Paths, limit: int) -> None:
    async def work(module: FakeModule) -> None:
        with pytest.raises(Invalid, match="limit"):
            await module.ask(GetHistory(limit=limit), "api")

    live(paths, work)


def test_history_is_newest_first_and_can_be_of_one_resource(paths: Paths) -> None:
    async def work(module: FakeModule) -> None:
        await lead(module, "app:a")
        await lead(module, "app:b")
        assert [c.resource for c in (await module.ask(GetHistory(), "api")).changes] == ["app:b", "app:a"]
        assert [c.resource for c in (await module.ask(GetHistory(resource="app:a"), "api")).changes] == ["app:a"]

    live(paths, work)


def test_a_commit_becomes_the_hint_of_the_new_rev(paths: Paths) -> None:
    async def work(module: FakeModule) -> None:
        for rev in (4, 4, 5):
            module.callbacks[ControlStoreCommit](ControlStoreCommit(rev=rev))
        assert [event.rev for event in module.published if isinstance(event, ControlRevChanged)] == [4, 5]

    live(paths, work)


def test_a_cancelled_campaign_is_whole_or_absent(paths: Paths) -> None:
    async def work(module: FakeModule) -> None:
        for n in range(50):
            task = asyncio.ensure_future(lead(module, f"app:a{n}"))
            await asyncio.sleep(0.0005 * (n % 4))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await lead(module, "app:last")
        page = PageReader(paths.page).read()
        listed = (await module.ask(GetLeadership(), "api")).leaderships
        assert page is not None and set(page.terms) == {item.resource for item in listed if item.role == "leader"}

    live(paths, work)
    assert os.listdir(paths.leash) == []


def test_a_crash_of_init_or_join_leaves_nothing_that_the_next_start_believes(paths: Paths) -> None:
    paths.cluster.mkdir(parents=True)
    paths.etcd_conf.write_text("{")

    async def work(module: FakeModule) -> None:
        assert (await lead(module)).epoch == 1, "although there is no supervisor that could end an etcd"
        assert module.healths[-1][0] is Level.OK
        assert not paths.etcd_conf.exists(), "none is started any more"
        assert (await module.ask(GetCluster(), "api")).mode == "alone"

    live(paths, work)


def test_a_node_alone_pays_nothing_for_what_clusters_need() -> None:
    code = (
        "import sys, services.consensus.service as s; print([m for m in sys.modules if m.split('.')[0] in ('grpc', 'google')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

"""An app's life on real podman: installed, stopped, adopted, always on, gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from piccolod import clock
from piccolod.errors import Conflict, Exists, Locked
from piccolod.leadership import leash_table
from piccolod.leadership.page import PageReader
from piccolod.leadership.resources import resource_for_app
from piccolod.protocol import apps as protocol
from piccolod.protocol import consensus
from piccolod.protocol.events import ControlStoreCommit, LockStateChanged
from tests.cluster.apps.world import MARKS, Machine, life, manifest

pytestmark = MARKS


def test_an_installed_app_serves_and_its_container_is_what_the_manifest_allows(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            began = clock.now()
            installed = await world.install(manifest(environment="{GREETING: 'yes'}", resources="{limits: {memory: 64MiB}}"))
            assert installed.listeners[0].public_port in machine.config.public_ports
            app = await world.serving("hello")
            took = clock.now() - began
            assert await world.get("hello") == "one"
            assert app.leader is not None
            assert app.leader.epoch == 1
            assert app.image_id.startswith("sha256:")
            assert took < 3.0, f"install to serving took {took:.2f} s"
            print(f"install to serving: {took:.3f} s")
            seen = world.inspect("hello")
            assert seen["HostConfig"]["ReadonlyRootfs"]
            assert seen["HostConfig"]["PidsLimit"] == 2048
            assert seen["HostConfig"]["Memory"] == 64 * 2**20
            assert seen["EffectiveCaps"] in ([], None)
            assert not seen["HostConfig"]["PortBindings"]
            status = Path(f"/proc/{seen['State']['Pid']}/status").read_text()
            assert "NoNewPrivs:\t1" in status
            assert "CapEff:\t0000000000000000" in status
            labels = seen["Config"]["Labels"]
            assert [labels[f"io.piccolo.{key}"] for key in ("cluster", "node", "app", "epoch", "generation")] == [
                "c1",
                "n1",
                "hello",
                "1",
                "1",
            ]
            (entry,) = leash_table.read(machine.paths.leash).values()
            assert entry.pid == seen["State"]["Pid"]
            assert entry.cgroup.endswith(seen["Id"])
            found = await world.ask(protocol.GetAppLogs(name="hello"))
            assert [line.line for line in found.lines] == ["serving yes"]
            with pytest.raises(Exists):
                await world.install(manifest())

    asyncio.run(story())


def test_a_container_whose_term_ends_between_its_making_and_its_process_gets_none(machine: Machine) -> None:
    """Only the runtime's own look at the page is left then: apps looked at it a moment before, and podman was slow."""

    async def story() -> None:
        async with life(machine) as world:
            podman = world.service._node.podman
            made, seen = podman.init, asyncio.Queue[tuple[int, dict[str, Any]]]()

            async def late(name: str) -> None:
                podman.init = made  # type: ignore[method-assign]
                now = PageReader(machine.paths.page).read()
                assert now is not None
                token = now.terms[resource_for_app("hello")].token
                await world.module.call(consensus.Closing(resource=resource_for_app("hello"), token=token))
                try:
                    await made(name)
                finally:
                    seen.put_nowait((token, world.inspect("hello")))

            podman.init = late  # type: ignore[method-assign]
            await world.install(manifest())
            async with asyncio.timeout(20):
                token, found = await seen.get()
            assert found["State"]["Status"] == "created", found["State"]
            assert found["State"]["Pid"] == 0
            annotations = found["Config"]["Annotations"]
            assert annotations["io.piccolo.resource"] == resource_for_app("hello")
            assert annotations["io.piccolo.token"] == str(token)
            app = await world.serving("hello")
            assert app.leader is not None
            assert app.leader.epoch > 1, "it runs in a term of its own, not in the one that was closed"

    asyncio.run(story())


def test_an_app_that_is_always_on_runs_without_a_term_and_is_not_guarded(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest(cluster="{policy: always_on}"))
            await world.serving("hello")
            assert await world.get("hello") == "one"
            seen = world.inspect("hello")
            assert "io.piccolo.resource" not in (seen["Config"].get("Annotations") or {})
            page_now = PageReader(machine.paths.page).read()
            assert page_now is not None
            assert resource_for_app("hello") not in page_now.terms
            assert leash_table.read(machine.paths.leash) == {}
            os.kill(seen["State"]["Pid"], signal.SIGKILL)
            await world.eventually(lambda: machine.routes["hello"].mode != "local", "the end seen")
            await world.serving("hello")
            await world.change("hello", "stop")
            await world.until("hello", "stopped")

    asyncio.run(story())


def test_an_app_without_internet_has_no_way_out_and_one_with_it_has(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest("inside"))
            await world.install(manifest("outside", permissions="{network: {internet: allow}}"))
            for name in ("inside", "outside"):
                await world.serving(name)
                assert await world.get(name) == "one"
            routes = {
                name: subprocess.run(
                    ["nsenter", "-t", str(world.inspect(name)["State"]["Pid"]), "-n", "ip", "route"],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
                for name in ("inside", "outside")
            }
            assert "default" not in routes["inside"]
            assert "default" in routes["outside"]

    asyncio.run(story())


def test_a_crash_of_the_process_costs_little_and_a_crash_loop_ends_in_failed_and_tells_where_its_lines_are(
    machine: Machine,
) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            waits = []
            for _ in range(3):
                pid = world.inspect("hello")["State"]["Pid"]
                began = clock.now()
                os.kill(pid, signal.SIGKILL)
                await world.eventually(lambda: machine.routes["hello"].mode == "hold", "the hold")
                await world.eventually(lambda: machine.routes["hello"].mode == "local", "the app")
                waits.append(clock.now() - began)
                assert await world.get("hello") == "one"
                await asyncio.sleep(0.2)
            print("crash to serving:", [f"{wait:.2f}" for wait in waits])
            assert min(waits) < 1.0, waits
            await world.install(manifest("sick", environment="{FAIL: 'yes'}"))
            app = await world.until("sick", "failed", 30.0)
            assert "exited with code 3" in app.reason
            assert "no database" not in app.reason, "what an app prints may be secret"
            assert "piccoloctl logs sick" in app.reason
            await world.eventually(lambda: machine.routes["sick"].mode == "closed", "the end of the hold")

    asyncio.run(story())


def test_stop_and_start_open_a_new_term_and_nothing_is_left_armed_in_between(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            await world.change("hello", "stop")
            await world.until("hello", "stopped")
            reader = PageReader(machine.paths.page)
            assert resource_for_app("hello") not in (reader.read() or pytest.fail("no page")).terms
            assert leash_table.read(machine.paths.leash) == {}
            await world.eventually(lambda: machine.routes["hello"].mode == "closed", "the end of the route")
            await world.change("hello", "start")
            app = await world.serving("hello")
            assert app.leader is not None
            assert app.leader.epoch == 2
            before = world.inspect("hello")["Id"]
            await world.change("hello", "restart")
            await world.eventually(lambda: machine.routes["hello"].mode == "hold", "the hold")
            app = await world.serving("hello")
            assert app.leader is not None
            assert app.leader.epoch == 2
            assert world.inspect("hello")["Id"] != before

    asyncio.run(story())


def test_a_restarted_apps_adopts_the_container_and_a_locked_one_minds_it(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            before = world.inspect("hello")
        machine.routes.clear()
        async with life(machine) as world:
            await world.serving("hello")
            await world.eventually(
                lambda: machine.routes.get("hello") is not None and machine.routes["hello"].mode == "local", "the route"
            )
            assert world.inspect("hello")["State"]["Pid"] == before["State"]["Pid"]
        machine.locked = True
        machine.routes.clear()
        async with life(machine) as world:
            await world.eventually(
                lambda: machine.routes.get("hello") is not None and machine.routes["hello"].mode == "local", "the route"
            )
            with pytest.raises(Locked):
                await world.show("hello")
            os.kill(world.inspect("hello")["State"]["Pid"], signal.SIGKILL)
            await world.eventually(lambda: machine.routes["hello"].mode == "hold", "the hold")
            await world.eventually(lambda: machine.routes["hello"].mode == "local", "the app again")
            machine.locked = False
            world.module.tell(LockStateChanged(locked=False, initialized=True, rev=machine.rev))
            await world.serving("hello")
            assert world.inspect("hello")["Id"] == before["Id"]

    asyncio.run(story())


def test_what_the_store_does_not_know_is_ended(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
        machine.documents.clear()
        async with life(machine) as world:
            await world.eventually(lambda: "piccolo-hello" not in world.containers(), "the end of the orphan")
            await world.eventually(lambda: not leash_table.read(machine.paths.leash), "the disarming")
            reader = PageReader(machine.paths.page)
            await world.eventually(lambda: resource_for_app("hello") not in reader.read().terms, "the end of its term")

    asyncio.run(story())


def test_a_dependent_app_waits(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest("base", environment="{FAIL: 'yes'}"))
            await world.install(manifest("upper", depends_on="[base]"))
            await world.until("upper", "pending", reason="waits for base")
            await world.apply(manifest("base"))
            await world.serving("upper")

    asyncio.run(story())


def test_a_repeated_install_of_an_app_that_is_gone_makes_no_phantom(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            request = protocol.InstallApp(manifest=protocol.Manifest(text=manifest()), author="test")
            await world.ask(request, idem="once")
            await world.serving("hello")
            again = await world.ask(request, idem="once")
            assert again.app.name == "hello"
            world.module.lose_delete = True
            await world.ask(protocol.UninstallApp(name="hello", author="test"))
            await world.eventually(lambda: not world.service._apps, "the end of the app")
            assert ("apps", "hello") not in machine.documents
            with pytest.raises(Conflict, match="uninstalled since"):
                await world.ask(request, idem="once")
            assert (await world.ask(protocol.ListApps())).apps == ()

    asyncio.run(story())


def test_an_app_that_vanished_from_the_store_is_minded_no_longer(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest(image="localhost/missing:1"))
            await world.until("hello", "pending")
            machine.documents.clear()
            world.module.tell(ControlStoreCommit(rev=machine.rev, collections=("apps",)))
            await world.eventually(lambda: not world.service._apps, "the end of the app")

    asyncio.run(story())

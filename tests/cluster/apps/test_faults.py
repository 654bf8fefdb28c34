"""What apps do when podman, a leash, the container or they themselves fail."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from pathlib import Path

from piccolod import clock
from piccolod.leadership.page import PageWriter
from piccolod.leadership.resources import RESOURCE_KERNEL
from tests.cluster.apps.world import MARKS, Machine, life, manifest, wait_for

pytestmark = MARKS


def test_podman_away_is_named_and_what_runs_goes_on(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            machine.service.kill()
            machine.service.wait()
            machine.paths.podman_socket.unlink()
            app = await world.install(manifest("later"))
            assert app.listeners[0].public_port in machine.config.public_ports
            await world.eventually(lambda: "podman" in str(world.module.judgement), "the judgement", 20.0)
            assert await world.get("hello") == "one"
            app = await world.show("hello")
            assert app.state == "running"
            assert "podman" in (await world.show("later")).reason
            machine.start_podman()
            await world.serving("later", 20.0)
            app = await world.serving("hello")
            assert app.reason == ""

    asyncio.run(story())


def test_a_frozen_podman_blocks_nobody(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            machine.service.send_signal(signal.SIGSTOP)
            try:
                began = clock.now()
                app = await world.show("hello")
                assert clock.now() - began < 0.2
                assert app.state == "running"
                await world.install(manifest("later"))
                assert clock.now() - began < 4.0
                assert await world.get("hello") == "one"
            finally:
                machine.service.send_signal(signal.SIGCONT)
            await world.serving("later", 30.0)

    asyncio.run(story())


def test_with_one_leash_nothing_new_starts(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            machine.processes[0].kill()
            machine.processes[0].wait()
            await world.install(manifest())
            await world.until("hello", "degraded", reason="1 of 2 leashes")
            assert world.inspect("hello")["State"]["Status"] == "initialized"
            machine.start_leash(0)
            await world.serving("hello")

    asyncio.run(story())


def test_a_deaf_app_is_killed_after_its_grace_and_an_unhealthy_one_is_restarted(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            check = "{exec: {command: [busybox, test, '!', -e, /tmp/sick]}, interval: 100ms, retries: 2}"
            await world.install(manifest(environment="{DEAF: 'yes'}", stop="{grace: 1s}", healthcheck=check))
            await world.serving("hello")
            before = world.inspect("hello")["State"]["Pid"]
            machine.run_podman("exec", "piccolo-hello", "sh", "-c", "echo > /tmp/sick")
            await world.eventually(lambda: not Path(f"/proc/{before}").exists(), "the kill", 20.0)
            app = await world.serving("hello")
            assert app.restarts == 1
            monitors = subprocess.run(
                ["pgrep", "-fc", f"conmon.*{machine.folder}"], capture_output=True, text=True, check=False
            ).stdout
            assert int(monitors) <= 2, "each check leaves a monitor behind"
            began = clock.now()
            await world.change("hello", "stop")
            await world.until("hello", "stopped")
            assert 0.9 < clock.now() - began < 6.0

    asyncio.run(story())


def test_the_leashes_end_an_app_whose_term_is_over_even_while_apps_is_away(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            pid = world.inspect("hello")["State"]["Pid"]
        writer = PageWriter(machine.paths.page)
        now = writer.read()
        assert now is not None
        writer.write(now._replace(terms={key: term for key, term in now.terms.items() if key == RESOURCE_KERNEL}))
        writer.close()
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the leash's kill", 5.0)

    asyncio.run(story())

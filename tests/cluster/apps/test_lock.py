"""The silence around a lock: apps stop for it, and come back with the unlock or its failure."""

from __future__ import annotations

import asyncio

from piccolod.leadership import leash_table
from piccolod.protocol import apps as protocol
from piccolod.protocol.events import LockStateChanged
from tests.cluster.apps.world import MARKS, Machine, life, manifest

pytestmark = MARKS


def test_quiesce_stops_all_led_apps_until_the_unlock_and_then_they_are_back_on_their_ports(machine: Machine) -> None:
    machine.documents["secrets", "password"] = (1, {"value": "hunter2"})

    async def story() -> None:
        async with life(machine) as world:
            text = manifest(
                storage="{persistent: {data: {container: /data}}}", secrets="[{name: password, file: /run/secrets/password}]"
            )
            port = (await world.install(text)).listeners[0].public_port
            await world.install(manifest("other"))
            await world.serving("hello")
            await world.serving("other")
            quiesced = await world.ask(protocol.Quiesce())
            assert quiesced.still_running == ()
            assert leash_table.read(machine.paths.leash) == {}
            assert not (machine.folder / "volumes/hello.attached").exists()
            assert not any(machine.paths.app_files.iterdir())
            assert (await world.show("hello")).reason.startswith("stopped for the lock")
            machine.locked = True
            world.module.tell(LockStateChanged(locked=True, initialized=True, rev=machine.rev))
            await world.eventually(lambda: world.service._node.locked, "the lock")
            machine.locked = False
            world.module.tell(LockStateChanged(locked=False, initialized=True, rev=machine.rev))
            app = await world.serving("hello")
            assert app.listeners[0].public_port == port
            assert machine.run_podman("exec", "piccolo-hello", "cat", "/run/secrets/password") == "hunter2"
            await world.serving("other")

    asyncio.run(story())


def test_apps_that_dies_between_the_silence_and_the_lock_does_not_bring_them_back(machine: Machine) -> None:
    async def first() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            assert (await world.ask(protocol.Quiesce())).still_running == ()

    async def second() -> None:
        async with life(machine) as world:
            await world.eventually(lambda: world.service._apps, "the app known again")
            app = world.service._apps["hello"]
            await world.eventually(app.at_rest.is_set, "the app held")
            assert leash_table.read(machine.paths.leash) == {}
            machine.locked = True
            world.module.tell(LockStateChanged(locked=True, initialized=True, rev=machine.rev))
            await world.eventually(lambda: world.service._node.locked, "the lock")

    async def third() -> None:
        async with life(machine) as world:
            world.module.tell(LockStateChanged(locked=True, initialized=True, rev=machine.rev))
            await world.eventually(world.service._node.known.is_set, "the lock known")
            assert leash_table.read(machine.paths.leash) == {}
            machine.locked = False
            world.module.tell(LockStateChanged(locked=False, initialized=True, rev=machine.rev))
            await world.serving("hello")

    asyncio.run(first())
    asyncio.run(second())
    asyncio.run(third())


def test_a_wish_to_lock_in_the_first_moment_of_apps_holds(machine: Machine) -> None:
    """It comes before apps has heard whether the store is locked, as when it is repeated after a crash."""

    async def first() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")

    async def second() -> None:
        machine.locked = True  # no news at the start of this life
        async with life(machine) as world:
            wish = asyncio.ensure_future(world.ask(protocol.Quiesce()))
            await asyncio.sleep(0)
            machine.locked = False
            world.module.tell(LockStateChanged(locked=False, initialized=True, rev=machine.rev))
            assert (await wish).still_running == ()
            assert leash_table.read(machine.paths.leash) == {}

    asyncio.run(first())
    asyncio.run(second())


def test_a_lock_that_failed_brings_the_apps_back_at_once(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            await world.ask(protocol.Quiesce())
            await world.ask(protocol.Resume())
            await world.serving("hello")

    asyncio.run(story())

"""Updates, applies and plans: what is replaced, what is rolled back, what changes nothing."""

from __future__ import annotations

import asyncio

import pytest

from piccolod.errors import Conflict, Invalid, NotFound
from piccolod.protocol import apps as protocol
from tests.cluster.apps.world import IMAGE, MARKS, Machine, life, manifest

pytestmark = MARKS


def test_an_update_that_is_well_wins_and_one_that_is_not_is_rolled_back(machine: Machine) -> None:
    machine.build("localhost/apps-test:2", "ENV ANSWER=two")
    machine.build("localhost/apps-test:bad", "ENV FAIL=yes")

    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest(update="{health_deadline: 5s}"))
            await world.serving("hello")
            await world.ask(protocol.UpdateApp(name="hello", author="test", image="localhost/apps-test:2"))
            await world.eventually(lambda: "candidate" not in machine.documents["apps", "hello"][1], "the verdict")
            app = await world.serving("hello")
            assert await world.get("hello") == "two"
            assert app.image == "localhost/apps-test:2"
            assert any("updated to" in warning for warning in app.warnings)
            await world.ask(protocol.UpdateApp(name="hello", author="test", image="localhost/apps-test:bad"))
            await world.eventually(lambda: "candidate" not in machine.documents["apps", "hello"][1], "the verdict", 20.0)
            app = await world.serving("hello")
            assert await world.get("hello") == "two"
            assert any("rolled back" in warning and "exited with code 3" in warning for warning in app.warnings), app.warnings
            await world.change("hello", "revert")
            await world.eventually(lambda: machine.routes["hello"].mode == "hold", "the hold")
            await world.serving("hello")
            assert await world.get("hello") == "one"
            with pytest.raises(NotFound, match="not on this node"):
                await world.ask(protocol.UpdateApp(name="hello", author="test", image="localhost/apps-test:9"))

    asyncio.run(story())


def test_apps_that_dies_at_any_step_of_an_update_ends_on_the_old_or_the_new(machine: Machine) -> None:
    machine.build("localhost/apps-test:2", "ENV ANSWER=two")

    async def start() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")

    async def update(after: float) -> None:
        async with life(machine) as world:
            await world.serving("hello")
            image = (
                "localhost/apps-test:2"
                if machine.documents["apps", "hello"][1]["current"]["manifest"]["image"] == IMAGE
                else IMAGE
            )
            await world.ask(protocol.UpdateApp(name="hello", author="test", image=image))
            await asyncio.sleep(after)

    async def settle() -> None:
        async with life(machine) as world:
            await world.serving("hello")
            await world.eventually(lambda: "candidate" not in machine.documents["apps", "hello"][1], "the verdict")
            app = await world.serving("hello")
            assert await world.get("hello") == ("one" if app.image == IMAGE else "two")
            assert world.containers() == ["piccolo-hello"]

    asyncio.run(start())
    for after in (0.0, 0.05, 0.15, 0.3, 0.5):
        asyncio.run(update(after))
        asyncio.run(settle())


def test_apply_replaces_the_container_only_when_something_of_it_changed(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest(title="One"))
            await world.serving("hello")
            before = world.inspect("hello")["Id"]
            app = await world.apply(manifest(title="Two"))
            assert app.title == "Two"
            await asyncio.sleep(0.3)
            assert world.inspect("hello")["Id"] == before
            await world.apply(manifest(title="Two", environment="{ANSWER: other}"))
            await world.eventually(lambda: machine.routes["hello"].mode == "hold", "the hold")
            await world.serving("hello")
            assert await world.get("hello") == "other"
            shown = await world.ask(
                protocol.PlanApp(manifest=protocol.Manifest(text=manifest(title="Three", environment="{ANSWER: other}")))
            )
            assert (shown.action, shown.restarts) == ("change", False)
            assert "title: Two -> Three" in shown.changes

    asyncio.run(story())


def test_the_wrong_manifest_changes_nothing(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            with pytest.raises(Invalid) as caught:
                await world.install("name: x\nlisteners: [{name: web, guest_port: 0}]\nport: 1\n")
            assert len(caught.value.errors) == 3
            assert machine.rev == 0
            await world.install(manifest("one", listeners="[{name: web, guest_port: 80, public_port: 4000}]"))
            with pytest.raises(Conflict, match="belongs to app one"):
                await world.install(manifest("two", listeners="[{name: web, guest_port: 80, public_port: 4000}]"))
            assert machine.rev == 1

    asyncio.run(story())


def test_no_other_image_and_no_way_back_for_a_privileged_app_without_consent(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            missing = "localhost/missing:1"
            await world.install(manifest(image=missing, permissions="{capabilities: [SYS_ADMIN]}"), consent=True)
            update = protocol.UpdateApp(name="hello", author="test", image="localhost/missing:2")
            for request in (update, protocol.UpdateApp(name="hello", author="test")):
                with pytest.raises(Invalid, match="consent"):
                    await world.ask(request)
            await world.apply(manifest(image=missing))
            with pytest.raises(Invalid, match="consent"):
                await world.change("hello", "revert")
            app = await world.change("hello", "revert", consent=True)
            assert app.generation == 3

    asyncio.run(story())


def test_a_plan_of_what_is_installed_changes_nothing(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            text = manifest(image="localhost/missing:1", listeners="[{name: web, guest_port: 80, public_port: auto}]")
            await world.install(text)
            made = await world.ask(protocol.PlanApp(manifest=protocol.Manifest(text=text)))
            assert (made.action, made.changes, made.restarts) == ("none", (), False)

    asyncio.run(story())

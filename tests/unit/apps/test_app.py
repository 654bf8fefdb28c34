"""One pass of an app: what is done is done for the very document that was looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from services.apps import app as app_module
from services.apps.actions import Actions
from services.apps.app import App
from services.apps.desired import Desired
from services.apps.documents import Stored
from services.apps.situation import Do, Image, ImageIs, Situation
from tests.unit.apps.situations import BOOT, at, wanted

OLD = Stored(wanted(), 0)  # as it was remembered, with its image sha256:1
_NEXT = wanted("title: new\n")
NEW = Stored(msgspec.structs.replace(_NEXT, current=msgspec.structs.replace(_NEXT.current, image_id="sha256:2")), 17)


class Log:
    def bind(self, **_: object) -> Log:
        return self

    def info(self, *_: object, **__: object) -> None: ...

    warning = error = info


class Routes:
    """A router that lets something happen while it is told."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], None] = lambda: None

    async def set(self, *_: object) -> None:
        self.meanwhile()

    def trouble(self, _: str) -> str:
        return ""


class House:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.routes = Routes()
        module = SimpleNamespace(
            log=Log(), publish=lambda _: None, config=SimpleNamespace(node=SimpleNamespace(address="127.0.0.1"))
        )
        node = SimpleNamespace(
            module=module, routes=self.routes, silence=SimpleNamespace(holds=lambda: False), boot_id=BOOT, ends=False,
            podman=SimpleNamespace(), images=SimpleNamespace(again_at=lambda _: 0.0),
        )  # fmt: skip
        self.app = App(node, OLD, asyncio.Event(), lambda _: True)  # type: ignore[arg-type]
        self.steps: list[Do] = []
        self.during_look: Callable[[], None] = lambda: None

        async def look(_node: Any, actions: Actions, _memory: Any) -> Situation:
            image = Image(ImageIs.PRESENT, actions.stored.desired.current.image_id)
            self.during_look()
            return at(image=image)

        async def run(_self: Actions, step: Do, *_: object) -> None:
            self.steps.append(step)

        monkeypatch.setattr(app_module.observe, "look", look)
        monkeypatch.setattr(Actions, "run", run)

    def passes(self) -> float:
        return asyncio.run(self.app._pass())


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    return House(monkeypatch)


def test_what_was_seen_for_one_document_is_not_done_for_the_next(house: House) -> None:
    """Else the image of the remembered version would be pinned onto the one that has come."""
    house.during_look = lambda: house.app.want(NEW)
    assert house.passes() == 0.0, "it looks again at once"
    assert house.steps == []
    house.during_look = lambda: None
    house.passes()
    assert Do.PIN not in house.steps
    assert house.steps[:2] == [Do.CAMPAIGN, Do.CREATE]


def test_a_document_that_comes_between_plan_and_step_stops_the_steps(house: House) -> None:
    house.routes.meanwhile = lambda: house.app.want(NEW)
    assert house.passes() == 0.0
    assert house.steps == []


def test_a_document_that_comes_between_two_steps_stops_the_rest(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(_self: Actions, step: Do, *_: object) -> None:
        house.steps.append(step)
        if step is Do.CREATE:
            house.app.want(NEW)

    monkeypatch.setattr(Actions, "run", run)
    assert house.passes() == 0.0
    assert house.steps == [Do.CAMPAIGN, Do.CREATE]


def test_a_late_answer_to_a_commit_of_its_own_does_not_bring_an_older_document_back(house: House) -> None:
    actions = house.app._actions

    class Slow:
        async def put(self, before: Stored, after: Desired, author: str) -> Stored:
            house.app.want(NEW)  # somebody's next change is heard of before our answer
            return Stored(after, 16)

    actions._node.documents = Slow()  # type: ignore[assignment]
    asyncio.run(actions._judge(OLD.desired))
    assert house.app.stored is NEW

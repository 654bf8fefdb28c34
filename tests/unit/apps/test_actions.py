"""What the steps of an app log."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from services.apps import actions, orphans
from services.apps.actions import Actions
from services.apps.podman import PodmanError
from services.apps.validate import validate

WORDS = "cannot stop: exec /bin/hidden: denied"


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, event: str, **more: Any) -> None:
        self.lines.append(f"{event} {more}")


class Stubborn:
    """A podman that stops nothing."""

    async def stop(self, name: str, grace_s: float) -> None:
        raise PodmanError(WORDS)

    async def inspect(self, name: str) -> dict[str, Any]:
        return {"Id": "c", "State": {"Pid": 0, "Status": "running"}}


def test_a_container_that_podman_does_not_stop_is_told_of_without_what_the_manifest_says(monkeypatch: Any) -> None:
    manifest = validate(
        "name: notes\nimage: localhost/a:1\ncommand: [/bin/hidden]\n"
        "listeners: [{name: web, guest_port: 80, flow: tcp, protocol: http}]\n"
    ).manifest
    log = Log()
    node = SimpleNamespace(podman=Stubborn(), module=SimpleNamespace(log=log))
    desired = SimpleNamespace(name="notes", current=SimpleNamespace(manifest=manifest), candidate=None)
    made = Actions(node, SimpleNamespace(desired=desired))  # type: ignore[arg-type]

    async def nothing(*_: object) -> None: ...

    monkeypatch.setattr(made, "_proof", nothing)
    monkeypatch.setattr(made, "_entry", lambda _: None)
    monkeypatch.setattr(actions, "kill_process", lambda _: None)
    asyncio.run(made._stop())
    assert "command[0]" in log.lines[0] and "hidden" not in log.lines[0]


def test_of_an_orphan_podmans_words_are_not_told() -> None:
    log = Log()

    class Ended(Exception):
        """As far as this test looks."""

    def guarded(app: str) -> list[Any]:
        raise Ended

    node = SimpleNamespace(podman=Stubborn(), module=SimpleNamespace(log=log), term=lambda _: None, guarded=guarded)
    try:
        asyncio.run(orphans.end(node, "notes"))  # type: ignore[arg-type]
    except Ended:
        pass
    assert len(log.lines) == 1 and "hidden" not in log.lines[0]

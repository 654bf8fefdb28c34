"""Former members leave the control store's list once the recovered cluster is led, and before anybody is let in."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from piccolod.errors import Busy, StoreUnavailable
from piccolod.paths import Paths
from services.consensus.joining import former
from services.consensus.joining.former import FormerMembers
from services.consensus.joining.recovery_journal import Journal, JournalFile, Stage


class Module:
    """`refuses`: how often persistence cannot."""

    def __init__(self, folder: Path, refuses: int = 0) -> None:
        self.paths = Paths(state=folder / "state", run=folder / "run")
        self.paths.cluster.mkdir(parents=True, exist_ok=True)
        self.log = SimpleNamespace(info=lambda *_, **__: None, debug=lambda *_, **__: None)
        self.refuses = refuses
        self.forgot: list[str] = []

    async def call(self, request: Any, *, timeout_s: float) -> None:
        if self.refuses:
            self.refuses -= 1
            raise StoreUnavailable("not now")
        self.forgot.append(request.node)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(former, "_AGAIN_S", 0.01)


def journal(module: Module) -> None:
    left = Journal(stage=Stage.SETTLED, aside="etcd.before-1", etcd="{}", former=("n1", "n2"))
    JournalFile(module.paths).write(left)


def test_they_are_forgotten_once_this_node_leads_however_often_that_fails_at_first(tmp_path: Path) -> None:
    async def main() -> None:
        module = Module(tmp_path, refuses=2)
        journal(module)
        leads = False
        members = FormerMembers(module, lambda: leads)  # type: ignore[arg-type]
        forgetting = asyncio.create_task(members.forget())
        await asyncio.sleep(0.05)
        assert module.forgot == [] and JournalFile(module.paths).read() is not None
        with pytest.raises(Busy, match="n1, n2"):
            members.check_forgotten()
        leads = True
        await asyncio.wait_for(forgetting, 5)
        assert module.forgot == ["n1", "n2"]
        members.check_forgotten()
        assert JournalFile(module.paths).read() is None

    asyncio.run(main())


def test_who_does_not_lead_any_more_takes_no_journal_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that could not be removed at once may be that of the next recovery by now."""

    async def main() -> None:
        module = Module(tmp_path)
        journal(module)
        leads, removals = True, 0

        def full(self: JournalFile) -> None:
            nonlocal leads, removals
            leads, removals = False, removals + 1
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(JournalFile, "remove", full)
            members = FormerMembers(module, lambda: leads)  # type: ignore[arg-type]
            forgetting = asyncio.create_task(members.forget())
            while not removals:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert JournalFile(module.paths).read() is not None
        forgetting.cancel()

    asyncio.run(main())


def test_without_a_recovery_there_is_nothing_to_forget(tmp_path: Path) -> None:
    module = Module(tmp_path)
    members = FormerMembers(module, lambda: True)  # type: ignore[arg-type]
    members.check_forgotten()
    asyncio.run(members.forget())
    assert module.forgot == []

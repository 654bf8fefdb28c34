"""Who was started before the mode of a node changed starts again after it, whatever crashes in between."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from piccolod import cluster_mode, config
from piccolod.errors import Unavailable
from services.consensus.joining.alone import Alone
from services.consensus.joining.folder import Folder
from tests.unit.consensus.joining.supervisor import Supervisor

ACT = ["persistence", "apps", "api"]


@pytest.fixture
def module(tmp_path: Path) -> Any:
    told = config.parse(f'[node]\nname = "n1"\naddress = "10.77.0.1"\nstate_dir = "{tmp_path}/s"\nrun_dir = "{tmp_path}/r"')
    told.paths.state.mkdir()
    told.paths.run.mkdir()
    say = lambda *_, **__: None  # noqa: E731
    return SimpleNamespace(config=told, paths=told.paths, log=SimpleNamespace(info=say, warning=say, error=say))


def start(module: Any) -> None:
    """A life of consensus on a node alone, as far as membership goes."""
    asyncio.run(Alone(module, None).start())  # type: ignore[arg-type]


def test_after_a_leave_that_crashed_nobody_goes_on_as_a_member(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, folder = Supervisor(monkeypatch), Folder(module.paths)
    folder.make()
    cluster_mode.enter(folder.path, cluster_mode.Mode(cluster="c", node="n1", since_ms=1))
    folder.owe_restarts()
    folder.wipe()  # and killed before the restarts: nothing in the folder tells of them any more
    start(module)
    assert supervisor.restarted == ACT
    start(module)
    assert supervisor.restarted == ACT, "once is enough"


def test_restarts_that_were_cut_off_are_made_up_for_by_the_next_life(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(monkeypatch)
    Folder(module.paths).owe_restarts()
    supervisor.refuses = "api"
    with pytest.raises(Unavailable):
        start(module)
    supervisor.refuses = ""
    start(module)
    assert supervisor.restarted == ["persistence", "apps", *ACT]

"""Who was started before the mode of a node changed starts again after it, whatever crashes in between."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from piccolod import cluster_mode, config, durable
from piccolod.errors import Unavailable
from piccolod.protocol.cluster import InitCluster, Timing
from piccolod.protocol.persistence import CryptoStatus
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


def becomes(module: Any, patch: pytest.MonkeyPatch, attempt: type) -> Any:
    """What `cluster init` answers, with this attempt in the place of the real one."""

    async def late(_name: str) -> Any:
        return SimpleNamespace(Init=lambda *_: attempt())

    async def main() -> Any:
        tasks: list[asyncio.Task[None]] = []
        handlers: dict[type, Any] = {}
        module.serve = handlers.__setitem__
        module.spawn = lambda work, name: tasks.append(asyncio.create_task(work, name=name))

        async def call(request: Any, timeout_s: float) -> CryptoStatus:
            return CryptoStatus(initialized=True, locked=False, has_recovery=False, keyset_version=1, cluster_id="c", reason="")

        module.call = call
        alone = Alone(module, None)  # type: ignore[arg-type]
        alone.serve()
        try:
            return await handlers[InitCluster](InitCluster(), None)
        finally:
            await asyncio.gather(*tasks)

    patch.setattr("services.consensus.joining.alone.late", late)
    patch.setattr("piccolod.etcd_conf.program", lambda: "etcd")
    patch.setattr("services.consensus.joining.alone.ANSWERED_S", 0.0)
    return asyncio.run(main())


def test_a_disk_that_fails_right_after_the_commit_point_makes_a_member_all_the_same(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, folder = Supervisor(monkeypatch), Folder(module.paths)

    class Attempt:
        notes = ("timing fast",)

        async def run(self, status: CryptoStatus) -> None:
            folder.make()
            folder.keep_timing(Timing(profile="fast", stop_s=0.1))
            folder.owe_restarts()

            def fail(_: Path) -> None:
                raise OSError(errno.EIO, "Input/output error")

            with monkeypatch.context() as patch:
                patch.setattr(durable, "sync_folder", fail)
                cluster_mode.enter(folder.path, cluster_mode.Mode(cluster="c", node="n1", since_ms=1))

    assert becomes(module, monkeypatch, Attempt).mode == "etcd"
    assert supervisor.restarted == [*ACT, "consensus"]
    assert not folder.owes_restarts()


def test_a_failure_before_the_commit_point_is_told_and_restarts_nobody(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, folder = Supervisor(monkeypatch), Folder(module.paths)

    class Attempt:
        async def run(self, status: CryptoStatus) -> None:
            folder.make()
            folder.owe_restarts()
            raise Unavailable("etcd does not start")

    with pytest.raises(Unavailable, match="etcd does not start"):
        becomes(module, monkeypatch, Attempt)
    assert supervisor.restarted == [] and not folder.owes_restarts()

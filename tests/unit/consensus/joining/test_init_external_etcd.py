"""`cluster init` into an etcd of an owner, where others write too: what it leaves there, and what a crash of it does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from piccolod import cluster_mode
from piccolod.errors import Conflict, StoreUnavailable
from piccolod.leadership import keys
from services.consensus import access, wire
from services.consensus.cluster_records import prefix
from services.consensus.joining import alone, init, outside
from services.consensus.joining.folder import Folder
from tests.etcd import Cluster
from tests.unit.consensus.joining.supervisor import Supervisor
from tests.unit.consensus.joining.test_init_etcd import CLUSTER, PAGE_GEN, Alone, found, pytestmark

__all__ = ["pytestmark"]

# What others keep in the same etcd.
OTHERS = ["/other", "/piccolo/another/gen"]


@pytest.fixture
def etcd() -> Iterator[Cluster]:
    with Cluster(1) as cluster:
        for name in OTHERS:
            cluster.members[0].ctl("put", name, "theirs")
        yield cluster


@pytest.fixture
def node(etcd: Cluster, tmp_path: Path) -> Alone:
    return Alone(tmp_path, extra_config=f'[etcd]\nmode = "external"\nendpoints = ["http://{etcd.endpoints[0]}"]')


def names(etcd: Cluster) -> list[str]:
    return sorted(etcd.members[0].ctl("get", "--prefix", "--keys-only", "/").split())


def killed(*_: Any) -> None:
    raise KeyboardInterrupt


def crash(etcd: Cluster, node: Alone, patch: pytest.MonkeyPatch) -> None:
    """kill -9 right before the commit point: nothing is taken back."""

    async def nothing(*_: Any) -> None: ...

    with patch.context() as dying:
        dying.setattr(cluster_mode, "enter", killed)
        dying.setattr(init, "undo", nothing)
        with pytest.raises(KeyboardInterrupt):
            found(etcd, node, dying)
    assert prefix(CLUSTER) + keys.GEN in names(etcd) and Folder(node.paths).draft() is not None


def start(node: Alone) -> None:
    """The next life of consensus, as far as membership goes."""
    asyncio.run(alone.Alone(node, None).start())  # type: ignore[arg-type]


def test_the_log_is_in_it_and_everything_that_is_led_begins_anew(
    etcd: Cluster, node: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = found(etcd, node, monkeypatch)
    assert wire.decode(keys.GEN, seen[keys.GEN]).gen > PAGE_GEN
    kernel = wire.decode(keys.EPOCH + "kernel", seen[keys.EPOCH + "kernel"])
    assert (kernel.epoch, kernel.held) == (3, False)
    assert keys.KERNEL_HEAD in seen and outside.FOUNDING not in seen
    assert [name for name in names(etcd) if not name.startswith(prefix(CLUSTER))] == OTHERS
    mode = cluster_mode.load(node.paths.cluster)
    assert mode is not None and (mode.etcd, mode.rpc) == ("external", "10.0.0.1:7444")
    assert not node.paths.etcd_conf.exists() and Folder(node.paths).draft() is None


def test_what_a_failure_left_in_it_is_taken_away_at_once(etcd: Cluster, node: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    node.late = 2
    with pytest.raises(Conflict, match="while it was moved"):
        found(etcd, node, monkeypatch)
    assert names(etcd) == OTHERS and not node.paths.cluster.exists()


def test_what_a_crash_left_in_it_is_taken_away_by_the_next_start(
    etcd: Cluster, node: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    Supervisor(monkeypatch)
    crash(etcd, node, monkeypatch)
    start(node)
    assert names(etcd) == OTHERS and not node.paths.cluster.exists()


def test_what_cannot_be_taken_away_then_is_by_the_next_attempt(
    etcd: Cluster, node: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    Supervisor(monkeypatch)
    crash(etcd, node, monkeypatch)
    monkeypatch.setattr(outside, "_GIVE_UP_S", 0.3)
    etcd.members[0].kill()
    start(node)
    assert Folder(node.paths).draft() is not None, "it is kept, or nobody could take it away"
    with pytest.raises(StoreUnavailable):
        found(etcd, node, monkeypatch)
    etcd.members[0].start()
    etcd.wait_up()
    node.open = True
    node.did.clear()
    seen = found(etcd, node, monkeypatch)
    assert keys.KERNEL_HEAD in seen and cluster_mode.load(node.paths.cluster) is not None


def test_a_member_never_takes_its_own_cluster_for_one_that_was_not_founded(
    etcd: Cluster, node: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after the commit point: the mark is still on both sides, and a leave later must not delete the cluster."""
    Supervisor(monkeypatch)
    with monkeypatch.context() as dying:
        dying.setattr(Folder, "drop_draft", killed)
        with pytest.raises(KeyboardInterrupt):
            found(etcd, node, dying)
    folder = Folder(node.paths)
    assert cluster_mode.load(folder.path) is not None and folder.draft() is not None
    asyncio.run(begin_as_a_member(node))
    cluster_mode.leave(folder.path)
    start(node)
    assert not folder.path.exists() and prefix(CLUSTER) + keys.GEN in names(etcd)


async def begin_as_a_member(node: Alone) -> None:
    from types import SimpleNamespace

    from services.consensus.joining.joined import Joined

    mode = cluster_mode.load(node.paths.cluster)
    assert mode is not None
    client = access.external(node.paths, node.config.etcd).client(2.0)
    leaser: Any = SimpleNamespace(driver=SimpleNamespace(store=SimpleNamespace(client=client, prefix="")), place=None)
    try:
        await Joined(node, leaser, mode).start()  # type: ignore[arg-type]
    finally:
        await client.close()

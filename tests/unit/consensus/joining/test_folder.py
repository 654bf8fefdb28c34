"""`state_dir/cluster`: who may read what, what a crash leaves, and what is given up."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod import cluster_mode, etcd_conf
from piccolod.errors import Invalid
from piccolod.paths import Paths
from piccolod.protocol.cluster import KnownMember, Timing
from services.consensus import members_file
from services.consensus.joining.folder import Folder, set_store_aside

MEMBER = KnownMember(address="10.0.0.1", client_url="https://10.0.0.1:2379", rpc="10.0.0.1:7444", api_url="http://10.0.0.1")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "state").mkdir()
    return Paths(state=tmp_path / "state", run=tmp_path / "run")


@pytest.fixture(params=[0o022, 0o077, 0o000], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode_of(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_what_is_public_is_readable_and_what_is_secret_is_not_whatever_the_umask_says(paths: Paths) -> None:
    folder = Folder(paths)
    folder.make()
    folder.keep_certificate("cert", b"key", "ca")
    folder.keep_members({"n1": MEMBER})
    folder.keep_timing(Timing(profile="fast", stop_s=0.01))
    folder.keep_etcd(etcd_conf.Settings("n1", "http://10.0.0.1:2380", "http://10.0.0.1:2379", "t"))
    modes = {file.name: mode_of(file) for file in folder.path.iterdir()}
    assert mode_of(folder.path) == 0o755
    assert modes == {
        "ca.pem": 0o644, "node.pem": 0o644, "node.key": 0o640, "members.json": 0o644, "timing.json": 0o644, "etcd.json": 0o600,
    }  # fmt: skip
    assert members_file.read(folder.paths) == {"n1": MEMBER}
    assert folder.timing() == Timing(profile="fast", stop_s=0.01)


def test_a_folder_without_mode_is_left_over_and_with_it_is_a_member(paths: Paths) -> None:
    folder = Folder(paths)
    assert not folder.is_left_over()
    paths.etcd_data.mkdir()
    assert folder.is_left_over(), "etcd's data alone, too"
    folder.make()
    assert folder.is_left_over() and not paths.etcd_data.exists()
    cluster_mode.enter(folder.path, cluster_mode.Mode(cluster="c", node="n1", since_ms=1))
    assert not folder.is_left_over()
    folder.wipe()
    assert not folder.path.exists() and not folder.is_left_over()


def test_a_store_that_is_given_up_is_set_aside_once_whenever_a_crash_came(paths: Paths) -> None:
    paths.store.mkdir(mode=0o700)
    paths.control_db.write_text("mine")
    folder = Folder(paths)
    folder.make()
    assert not folder.settle_store(), "nobody gave it up"
    folder.give_store_up()
    assert paths.control_db.read_text() == "mine", "it is this node's until it is a member"
    assert Folder(paths).settle_store()
    assert not list(paths.store.iterdir())
    assert [(aside / "control.db").read_text() for aside in paths.state.glob("store.before-*")] == ["mine"]
    paths.control_db.write_text("the cluster's")
    assert not Folder(paths).settle_store()
    assert paths.control_db.read_text() == "the cluster's"


@pytest.mark.parametrize("given_up", [True, False], ids=["join", "leave"])
@pytest.mark.parametrize("step", ["mkdir", "chown", "rename", "second rename"])
def test_a_crash_while_the_store_is_set_aside_leaves_it_a_folder_of_its_owner(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, step: str, given_up: bool
) -> None:
    paths.store.mkdir(mode=0o700)
    paths.control_db.write_text("mine")
    os.chown(paths.store, 1234, 1235)
    folder = Folder(paths)
    folder.make()
    if given_up:
        folder.give_store_up()
    renames: list[Path] = []

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    def rename(self: Path, target: Path) -> Path:
        renames.append(target)
        if step == "rename" or len(renames) == 2:
            raise Killed
        os.rename(self, target)
        return target

    with monkeypatch.context() as patch:
        if step in ("mkdir", "chown"):
            patch.setattr(*((Path, "mkdir") if step == "mkdir" else (os, "chown")), killed)
        else:
            patch.setattr(Path, "rename", rename)
        with pytest.raises(Killed):
            set_store_aside(paths)
    Folder(paths).settle_store()
    now = paths.store.stat()
    assert (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) == (1234, 1235, 0o700)
    if given_up:
        assert not list(paths.store.iterdir())
    set_store_aside(paths)
    assert not list(paths.store.iterdir())
    assert [(aside / "control.db").read_text() for aside in paths.state.glob("store.before-*")] == ["mine"]
    assert not list(paths.state.glob("store.new"))


def test_a_damaged_file_is_named(paths: Paths) -> None:
    folder = Folder(paths)
    folder.make()
    (folder.path / "timing.json").write_text("{}")
    with pytest.raises(Invalid, match=r"timing\.json"):
        folder.timing()

"""The folders of a node: whatever was done to them while nobody ran, a start makes them right, and follows no link."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from piccolod.errors import Failed
from piccolod.paths import Paths
from piccolod.supervisor.rundir import RunDir, group_id

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(state=tmp_path / "state", run=tmp_path / "run")


def prepare(paths: Paths, owners: dict[Path, str] | None = None) -> None:
    made = RunDir(paths)
    try:
        made.prepare(owners or {}).close()
    finally:
        made.close()


def seen(path: Path) -> tuple[int, int, int]:
    found = path.lstat()
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


def test_modes_and_owners_of_folders_that_were_there_are_set_at_each_start(paths: Paths) -> None:
    prepare(paths, {paths.store: "nobody"})
    for folder in (paths.bus, paths.leash, paths.log, paths.store):
        folder.chmod(0o777)
        os.chown(folder, 12345, 12345)
    (paths.store / "deep").mkdir()
    (paths.store / "deep/file").write_text("x")
    prepare(paths, {paths.store: "nobody"})
    assert seen(paths.bus) == (0o710, 0, max(0, group_id()))
    assert seen(paths.leash) == seen(paths.log) == (0o700, 0, 0)
    assert seen(paths.store) == (0o700, NOBODY.pw_uid, NOBODY.pw_gid)
    assert seen(paths.store / "deep/file")[1:] == (NOBODY.pw_uid, NOBODY.pw_gid)


def test_a_link_in_the_place_of_a_folder_is_refused_by_name_and_what_it_shows_is_not_touched(paths: Paths) -> None:
    prepare(paths)
    elsewhere = paths.state / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    before = seen(elsewhere)
    paths.leash.rmdir()
    paths.leash.symlink_to(elsewhere)
    with pytest.raises(Failed, match=str(paths.leash)):
        prepare(paths)
    assert seen(elsewhere) == before


def test_a_link_inside_a_folder_that_changes_hands_does_not_lead_out_of_it(paths: Paths) -> None:
    outside = paths.state.parent / "outside"
    outside.write_text("not theirs")
    paths.store.mkdir(parents=True)
    (paths.store / "link").symlink_to(outside)
    (paths.store / "loop").symlink_to(paths.state.parent)
    prepare(paths, {paths.store: "nobody"})
    assert seen(outside)[1] == 0
    assert seen(paths.state)[1] == 0
    assert seen(paths.store / "link")[1] == NOBODY.pw_uid


def test_a_file_in_the_place_of_a_folder_is_named(paths: Paths) -> None:
    prepare(paths)
    paths.log.rmdir()
    paths.log.write_text("")
    with pytest.raises(Failed, match=str(paths.log)):
        prepare(paths)


def test_who_died_before_a_folder_had_its_mode_is_followed_by_one_who_gives_it(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(fd: int, *_: int) -> None:
        raise OSError("stands for a death")

    for folder in (paths.state, paths.run):
        with monkeypatch.context() as patch, pytest.raises(Failed):
            patch.setattr(os, "fchmod", dies)
            patch.setattr(os, "fchown", dies)
            RunDir(paths)
        assert seen(folder)[0] & 0o077 == 0
        if folder == paths.state:  # the next dies one folder later
            folder.chmod(0o711)
    RunDir(paths).close()
    assert seen(paths.state)[0] == 0o711
    assert seen(paths.run) == (0o710, 0, max(0, group_id()))


def test_a_closed_folder_that_somebody_chose_and_uses_stays_closed(paths: Paths) -> None:
    paths.state.mkdir(mode=0o700)
    (paths.state / "theirs").touch()
    RunDir(paths).close()
    assert seen(paths.state)[0] == 0o700

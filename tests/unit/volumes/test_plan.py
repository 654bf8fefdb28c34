from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piccolod.errors import Invalid, NotSupported
from services.volumes import plan
from services.volumes.plan import Body, Change, Seen, Shape, State, VolumeId, change, shape_for, state_of

MIB = 2**20


@pytest.mark.parametrize("name", ["..", "a/b", "A", "", "data\n", "a.b", "-a", "x" * 51, ".new-a"])
def test_a_name_that_could_be_another_path_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        VolumeId.checked("app", name)
    with pytest.raises(Invalid):
        VolumeId.checked(name, "data")


def test_only_whole_volumes_are_read_back_from_folders() -> None:
    volume = VolumeId.checked("notes", "data")
    assert VolumeId.of_folder(str(volume)) == volume
    for other in (".new-notes.data.1", ".gone-notes.data", "notes", "lost+found", "notes.data.x"):
        assert VolumeId.of_folder(other) is None


def test_each_way_the_kernel_can_show_a_volume_has_a_name() -> None:
    assert state_of(Seen(), was_mounted=False) is State.DETACHED
    assert state_of(Seen(image_mounted=True), was_mounted=False) is State.HALF
    assert state_of(Seen(process=1), was_mounted=False) is State.STARTING
    assert state_of(Seen(process=1, mounted=True), was_mounted=False) is State.ATTACHED
    assert state_of(Seen(process=1), was_mounted=True) is State.HELD
    assert state_of(Seen(mounted=True, image_mounted=True), was_mounted=True) is State.DEAD


@given(st.integers(0, 9), st.booleans(), st.booleans(), st.booleans())
def test_a_living_process_is_never_taken_for_a_detached_volume(
    pid: int, mounted: bool, image_mounted: bool, was_mounted: bool
) -> None:
    state = state_of(Seen(pid, mounted, image_mounted), was_mounted=was_mounted)
    assert (state in (State.DETACHED, State.HALF, State.DEAD)) == (pid == 0)


def test_a_limit_is_enforced_refused_or_visibly_not() -> None:
    assert shape_for(64 * MIB, "", strict=True) == Shape(Body.IMAGE, 64 * MIB)
    with pytest.raises(NotSupported, match="no loop devices") as refused:
        shape_for(64 * MIB, "it has no loop devices", strict=True)
    assert "strict" in refused.value.hint
    degraded = shape_for(64 * MIB, "it has no loop devices", strict=False)
    assert degraded.body is Body.TREE and "not enforced" in plan.describe(degraded)
    assert shape_for(0, "it has no loop devices", strict=True) == Shape(Body.TREE, 0)


@pytest.mark.parametrize("limit", [-1, 1, plan.MIN_LIMIT_BYTES - 1])
def test_a_limit_that_cannot_be_kept_is_refused(limit: int) -> None:
    with pytest.raises(Invalid):
        shape_for(limit, "", strict=True)


def test_only_a_larger_image_changes_in_place() -> None:
    small, large, free = Shape(Body.IMAGE, 64 * MIB), Shape(Body.IMAGE, 128 * MIB), Shape(Body.TREE, 0)
    assert change(small, small) is Change.NONE
    assert change(small, large) is Change.GROW
    assert change(large, small) is Change.REBUILD
    assert change(free, small) is Change.REBUILD
    assert change(small, free) is Change.REBUILD
    assert change(free, Shape(Body.TREE, 64 * MIB, "size_limit is not enforced: x")) is Change.NOTE


def test_promises_beyond_the_disk_are_named() -> None:
    assert plan.overcommitted(100 * MIB, 20 * MIB, 80 * MIB) == ""
    assert "80.0 MiB" in plan.overcommitted(100 * MIB, 20 * MIB, 79 * MIB)

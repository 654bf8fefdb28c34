"""The driver against real gocryptfs, real loop devices, real mounts."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from piccolod.errors import Busy, Conflict, Failed, NotFound, NotLeader
from piccolod.paths import Paths
from services.volumes import image, mounts
from services.volumes.driver import Driver
from services.volumes.plan import Body, Shape, State, VolumeId
from tests.node import until
from tests.unit.volumes import seen

pytestmark = pytest.mark.root

MIB = 2**20
KEY = bytes(range(32))
DATA = VolumeId("notes", "data")
FREE = Shape(Body.TREE, 0)
LIMITED = Shape(Body.IMAGE, 32 * MIB)


def allowed() -> None:
    """The gate is open."""


@pytest.fixture
def driver(paths: Paths) -> Driver:
    return Driver(paths)


@pytest.fixture(params=[FREE, LIMITED], ids=["tree", "image"])
def shape(request: pytest.FixtureRequest) -> Shape:
    if request.param.body is Body.IMAGE and (missing := image.why_not()):
        pytest.skip(missing)
    assert isinstance(request.param, Shape)
    return request.param


@pytest.fixture
def attached(driver: Driver, shape: Shape) -> Iterator[Path]:
    driver.create(DATA, shape, KEY)
    driver.attach(DATA, 1, KEY, allowed)
    yield driver.mount_point(DATA)


def assert_nothing_is_left(paths: Paths) -> None:
    folder = paths.run.parent
    assert seen.gocryptfs(folder) == []
    assert [mount.point for mount in mounts.here() if mount.point.startswith(str(folder))] == []
    # The kernel frees a loop device a moment after the unmount.
    seen.wait_until(lambda: not seen.loops(folder), "no loop device holds an image")
    assert list(paths.mounts.iterdir()) == []


def test_what_an_app_wrote_is_there_after_detach_and_attach(driver: Driver, attached: Path, paths: Paths) -> None:
    (attached / "note.txt").write_text("remember the milk")
    os.chown(attached / "note.txt", 999, 999)
    driver.detach(DATA)
    assert not attached.exists()
    assert_nothing_is_left(paths)
    driver.attach(DATA, 2, KEY, allowed)
    assert (attached / "note.txt").read_text() == "remember the milk"
    assert (attached / "note.txt").stat().st_uid == 999


def test_no_plain_text_and_no_key_is_under_the_state_folder(driver: Driver, attached: Path, paths: Paths) -> None:
    (attached / "diary-of-anna.txt").write_text("the secret of the orchard" * 1000)
    driver.detach(DATA)
    words = (b"the secret of the orchard", b"diary-of-anna", KEY, KEY.hex().encode())
    for file in [*paths.state.rglob("*"), *paths.run.rglob("*")]:
        assert b"diary-of-anna" not in os.fsencode(file)
        if file.is_file():
            content = file.read_bytes()
            assert [word for word in words if word in content] == [], file


def test_the_key_is_in_no_argument_and_no_environment(driver: Driver, attached: Path, paths: Paths) -> None:
    (pid,) = seen.gocryptfs(paths.run.parent)
    for name in ("cmdline", "environ"):
        content = Path(f"/proc/{pid}/{name}").read_bytes()
        assert KEY.hex().encode() not in content and KEY not in content


def test_gocryptfs_leaves_no_core_dump_and_has_its_own_session(attached: Path, paths: Paths) -> None:
    (pid,) = seen.gocryptfs(paths.run.parent)
    assert os.getsid(pid) == pid
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert next(line for line in limits.splitlines() if line.startswith("Max core")).split()[4:6] == ["1", "1"]


def test_attaching_and_detaching_twice_is_attaching_and_detaching_once(driver: Driver, attached: Path, paths: Paths) -> None:
    first = seen.gocryptfs(paths.run.parent)
    again = driver.attach(DATA, 5, None, allowed)
    assert [again.pid] == first == seen.gocryptfs(paths.run.parent)
    assert again.token == 5
    driver.detach(DATA)
    driver.detach(DATA)
    assert_nothing_is_left(paths)


def test_a_wrong_key_mounts_nothing_and_says_so(driver: Driver, paths: Paths, shape: Shape) -> None:
    driver.create(DATA, shape, KEY)
    with pytest.raises(Failed, match="incorrect"):
        driver.attach(DATA, 1, bytes(32), allowed)
    assert_nothing_is_left(paths)


def test_a_term_that_ended_before_the_mount_mounts_nothing(driver: Driver, paths: Paths, shape: Shape) -> None:
    driver.create(DATA, shape, KEY)

    def shut() -> None:
        raise NotLeader("over")

    with pytest.raises(NotLeader):
        driver.attach(DATA, 1, KEY, shut)
    assert driver.look(DATA).state is State.DETACHED


@pytest.mark.parametrize("last_yes", [1, 2])
def test_a_term_that_ends_during_the_mount_takes_the_mount_away(
    driver: Driver, paths: Paths, shape: Shape, last_yes: int
) -> None:
    driver.create(DATA, shape, KEY)
    asked = 0

    def shuts() -> None:
        nonlocal asked
        asked += 1
        if asked > last_yes:
            raise NotLeader("over")

    with pytest.raises(NotLeader):
        driver.attach(DATA, 1, KEY, shuts)
    assert asked == last_yes + 1
    assert_nothing_is_left(paths)


def test_an_open_file_makes_a_detach_busy_and_names_its_holder(driver: Driver, attached: Path, paths: Paths) -> None:
    with (attached / "open.txt").open("w"):
        with pytest.raises(Busy, match=f"pid {os.getpid()}"):
            driver.detach(DATA)
        assert driver.look(DATA).state is State.ATTACHED
        (attached / "more.txt").write_text("still mounted")
    driver.detach(DATA)
    assert_nothing_is_left(paths)


def container(point: Path) -> subprocess.Popen[bytes]:
    """A process with mounts of its own, as a container that was given the volume has."""
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep 60"], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"ready\n"
    return holder


def test_a_container_that_still_has_the_volume_makes_a_detach_busy(driver: Driver, attached: Path, paths: Paths) -> None:
    holder = container(attached)
    try:
        with pytest.raises(Busy, match=f"pid {holder.pid}"):
            driver.detach(DATA)
        assert (attached).is_mount()
    finally:
        holder.kill()
        holder.communicate()
    driver.detach(DATA)
    assert_nothing_is_left(paths)


def test_a_detach_takes_the_image_from_every_namespace(driver: Driver, paths: Paths) -> None:
    if missing := image.why_not():
        pytest.skip(missing)
    driver.create(DATA, LIMITED, KEY)
    driver.attach(DATA, 1, KEY, allowed)
    point = driver.mount_point(DATA)
    holder = container(point)
    try:
        subprocess.run(["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "umount", str(point)], check=True)
        assert f"{DATA}.cipher" in Path(f"/proc/{holder.pid}/mountinfo").read_text()
        driver.detach(DATA)
        driver.reshape(DATA, Shape(Body.IMAGE, 64 * MIB))
        driver.attach(DATA, 2, KEY, allowed)
        assert os.statvfs(point).f_blocks * os.statvfs(point).f_frsize > LIMITED.limit_bytes
    finally:
        holder.kill()
        holder.communicate()


def test_a_container_that_only_starts_does_not_stop_a_detach(driver: Driver, attached: Path, paths: Paths) -> None:
    starting = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "0.7"])
    try:
        seen.wait_until(lambda: mounts.other_users(driver.look(DATA).device, attached), "it has a copy of our mounts")
        driver.detach(DATA)
    finally:
        starting.wait(10)
    assert_nothing_is_left(paths)


def test_there_is_no_second_writer_while_a_container_holds_the_first(driver: Driver, attached: Path, paths: Paths) -> None:
    holder = container(attached)
    try:
        subprocess.run(["umount", str(attached)], check=True)  # somebody's hand; the container still writes
        assert driver.look(DATA).state is State.HELD
        with pytest.raises(Busy, match=f"pid {holder.pid}"):
            driver.attach(DATA, 2, KEY, allowed)
        assert len(seen.gocryptfs(paths.run.parent)) == 1
    finally:
        holder.kill()
        holder.communicate()
    seen.wait_until(lambda: driver.look(DATA).record is None, "gocryptfs ends with its last mount")
    driver.attach(DATA, 2, KEY, allowed)
    assert len(seen.gocryptfs(paths.run.parent)) == 1


def test_two_writers_are_refused_by_the_lock_even_without_a_journal(driver: Driver, attached: Path, paths: Paths) -> None:
    (pid,) = seen.gocryptfs(paths.run.parent)
    driver.journal.forget(DATA)
    os.kill(pid, signal.SIGSTOP)  # before the mount goes: it would end with its last one
    try:
        subprocess.run(["umount", "--lazy", str(attached)], check=True, cwd="/")
        with pytest.raises(Busy):
            driver.attach(DATA, 2, KEY, allowed)
    finally:
        os.kill(pid, signal.SIGCONT)
    seen.wait_until(lambda: not seen.gocryptfs(paths.run.parent), "the first writer ends")
    driver.attach(DATA, 2, KEY, allowed)


def test_a_killed_gocryptfs_is_seen_and_replaced(driver: Driver, attached: Path, paths: Paths) -> None:
    (attached / "kept.txt").write_text("kept")
    (pid,) = seen.gocryptfs(paths.run.parent)
    seen.end(pid)
    with pytest.raises(OSError) as broken:
        (attached / "kept.txt").read_text()
    assert broken.value.errno == errno.ENOTCONN
    assert driver.look(DATA).state is State.DEAD
    driver.attach(DATA, 1, KEY, allowed)
    assert (attached / "kept.txt").read_text() == "kept"
    driver.detach(DATA)
    assert_nothing_is_left(paths)


def test_a_killed_gocryptfs_can_be_detached(driver: Driver, attached: Path, paths: Paths) -> None:
    (pid,) = seen.gocryptfs(paths.run.parent)
    seen.end(pid)
    driver.detach(DATA)
    assert_nothing_is_left(paths)


def test_a_mount_without_its_journal_is_found_and_adopted(driver: Driver, attached: Path, paths: Paths) -> None:
    driver.journal.forget(DATA)
    look = driver.look(DATA)
    assert look.state is State.ATTACHED and look.record is not None
    assert [look.record.pid] == seen.gocryptfs(paths.run.parent)
    driver.detach(DATA)
    assert_nothing_is_left(paths)


def test_the_limit_is_enforced_and_a_detached_volume_still_opens(driver: Driver, paths: Paths) -> None:
    if missing := image.why_not():
        pytest.skip(missing)
    driver.create(DATA, LIMITED, KEY)
    driver.attach(DATA, 1, KEY, allowed)
    point = driver.mount_point(DATA)
    (point / "first.txt").write_text("first")
    with pytest.raises(OSError) as full, (point / "big").open("wb", buffering=0) as file:
        for _ in range(64):
            file.write(os.urandom(MIB))
    assert full.value.errno == errno.ENOSPC
    assert driver.used_bytes(DATA) <= LIMITED.limit_bytes
    driver.detach(DATA)
    driver.attach(DATA, 1, KEY, allowed)
    assert (point / "first.txt").read_text() == "first"


def test_a_full_disk_refuses_new_data_and_the_volume_comes_back_with_room(paths: Paths) -> None:
    if missing := image.why_not():
        pytest.skip(missing)
    disk = paths.run.parent / "disk"
    small = paths.state / "small"
    small.mkdir()
    with disk.open("xb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(small)], check=True)
    (small / "ballast").write_bytes(bytes(8 * MIB))
    driver = Driver(Paths(state=small, run=paths.run))
    driver.create(DATA, Shape(Body.IMAGE, 512 * MIB), KEY)
    driver.attach(DATA, 1, KEY, allowed)
    point = driver.mount_point(DATA)
    with (point / "first").open("wb", buffering=0) as file:
        file.write(b"first")
        os.fsync(file.fileno())
    with pytest.raises(OSError) as full, (point / "big").open("wb", buffering=0) as file:
        for _ in range(128):
            file.write(os.urandom(MIB))
            os.fsync(file.fileno())
    assert full.value.errno in (errno.ENOSPC, errno.EIO)
    assert (point / "first").read_text() == "first"
    driver.detach(DATA)
    (small / "ballast").unlink()
    driver.attach(DATA, 1, KEY, allowed)
    assert (point / "first").read_text() == "first"
    (point / "big").unlink()
    (point / "second").write_text("second")
    driver.detach(DATA)
    assert driver.stored_bytes(DATA) < 48 * MIB, "deleted files give their place back to the disk"


@pytest.mark.parametrize(
    "wished", [Shape(Body.IMAGE, 48 * MIB), Shape(Body.IMAGE, 16 * MIB), FREE], ids=["larger", "smaller", "none"]
)
def test_the_limit_changes_and_everything_stays(driver: Driver, attached: Path, paths: Paths, wished: Shape) -> None:
    if missing := image.why_not():
        pytest.skip(missing)
    (attached / "sub").mkdir()
    (attached / "sub" / "kept.txt").write_text("kept")
    os.chown(attached / "sub" / "kept.txt", 33, 44)
    os.link(attached / "sub" / "kept.txt", attached / "again.txt")
    os.symlink("sub/kept.txt", attached / "link")
    driver.detach(DATA)
    driver.reshape(DATA, wished)
    assert driver.describe(DATA).shape == wished
    driver.attach(DATA, 2, KEY, allowed)
    kept = (attached / "link").stat()
    assert (attached / "link").read_text() == "kept"
    assert (kept.st_uid, kept.st_gid, kept.st_nlink) == (33, 44, 2)
    if wished.body is Body.IMAGE:
        size = os.statvfs(attached).f_blocks * os.statvfs(attached).f_frsize
        assert 0.7 * wished.limit_bytes < size <= wished.limit_bytes
    assert [entry.name for entry in (paths.volumes / str(DATA)).iterdir() if entry.suffix in (".tree", ".image")] == [
        driver.describe(DATA).file
    ]


def test_a_limit_below_what_is_stored_is_refused_and_nothing_changes(driver: Driver, attached: Path, paths: Paths) -> None:
    if missing := image.why_not():
        pytest.skip(missing)
    (attached / "big").write_bytes(os.urandom(12 * MIB))
    driver.detach(DATA)
    before = driver.describe(DATA)
    with pytest.raises(Conflict, match="holds"):
        driver.reshape(DATA, Shape(Body.IMAGE, 8 * MIB))
    assert driver.describe(DATA) == before
    driver.attach(DATA, 1, KEY, allowed)
    assert (attached / "big").stat().st_size == 12 * MIB


def test_a_limit_is_not_lowered_under_a_running_app(driver: Driver, attached: Path) -> None:
    with pytest.raises(Busy, match="attached"):
        driver.reshape(DATA, Shape(Body.IMAGE, 16 * MIB))


def test_a_volume_that_is_attached_is_not_deleted(driver: Driver, attached: Path) -> None:
    with pytest.raises(Busy):
        driver.set_aside(DATA)
    assert driver.exists(DATA)


def test_a_deleted_volume_is_gone_at_once_and_its_rest_is_known(driver: Driver, attached: Path, paths: Paths) -> None:
    other = VolumeId("notes2", "data")
    driver.create(other, FREE, KEY)
    driver.detach(DATA)
    driver.set_aside(DATA)
    assert driver.volumes() == [other] and driver.gone() == [DATA]
    with pytest.raises(NotFound):
        driver.attach(DATA, 1, KEY, allowed)
    driver.remove_gone(DATA)
    assert driver.gone() == [] and driver.exists(other)


def test_a_damaged_description_is_named_and_nothing_is_guessed(driver: Driver, attached: Path, paths: Paths) -> None:
    driver.detach(DATA)
    (paths.volumes / str(DATA) / "volume.json").write_text("{")
    with pytest.raises(Failed, match="damaged"):
        driver.attach(DATA, 1, KEY, allowed)
    assert driver.volumes() == [DATA]


LIFE = """
import sys
from pathlib import Path
from piccolod.paths import Paths
from services.volumes.driver import Driver
from services.volumes.plan import Body, Shape, VolumeId
driver = Driver(Paths(state=Path(sys.argv[1]), run=Path(sys.argv[2])))
volume, key = VolumeId("notes", "data"), bytes(range(32))
driver.drop_half_made()
print("ready", flush=True)
while True:
    if not driver.exists(volume):
        driver.create(volume, Shape(Body(sys.argv[3]), int(sys.argv[4])), key)
    driver.attach(volume, 1, key, lambda: None)
    driver.detach(volume)
"""


def test_a_life_killed_at_any_moment_leaves_what_the_next_one_can_use(paths: Paths, shape: Shape) -> None:
    driver = Driver(paths)
    argv = [sys.executable, "-c", LIFE, str(paths.state), str(paths.run), shape.body, str(shape.limit_bytes)]
    words = ""
    for turn in range(25):
        life = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
        try:
            assert life.stdout is not None and life.stdout.readline() == b"ready\n"
            # Spread over the steps of a round, which takes about 50 ms.
            with pytest.raises(subprocess.TimeoutExpired):
                life.wait(timeout=0.002 + turn * 0.0043)
        finally:
            life.kill()
            life.communicate()
        driver.drop_half_made()
        if not driver.exists(DATA):
            driver.create(DATA, shape, KEY)
        driver.attach(DATA, turn, KEY, allowed)
        assert len(seen.gocryptfs(paths.run.parent)) == 1, f"kill {turn}: one writer"
        note = driver.mount_point(DATA) / "note"
        assert (note.read_text() if note.exists() else "") == words, f"kill {turn}: what was written is there"
        words = f"turn {turn}"
        note.write_text(words)

        def let_go() -> bool:
            with suppress(Busy):  # what the killed one was about to start may take a moment to end
                driver.detach(DATA)
                return True
            return False

        until(let_go, f"kill {turn}: nobody uses it", 10)
        assert_nothing_is_left(paths)

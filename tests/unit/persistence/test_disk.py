"""A disk that is full, read-only or broken: the write is refused whole with the reason, and all recovers afterwards."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from piccolod.errors import PiccoloError, StoreFull, StoreUnavailable
from services.persistence import keyset as keysets
from services.persistence.store import Store
from services.persistence.verify import survey

from .conftest import CHEAP, CLUSTER, Bench, used

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")


@pytest.fixture()
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"\x00" * size)
            except OSError:
                continue
    return ballast


def in_own_process(work: Callable[[], None]) -> None:
    """What `work` does to its process ends with it. Its failure is the test's."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        import traceback

        try:
            work()
            os._exit(0)
        except BaseException:
            os.write(write, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(1)
    os.close(write)
    with open(read, "rb") as file:
        report = file.read().decode()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, report


@pytest.mark.root
@as_root
def test_a_full_disk_refuses_the_write_whole_and_takes_it_when_there_is_room_again(small_disk: Path) -> None:
    bench = Bench(small_disk)
    try:
        bench.put("hello", {"v": 0})
        ballast = fill(small_disk)
        refused = 0
        for number in range(200):
            before = bench.store.state.rev
            try:
                bench.put("hello", {"v": number + 1, "x": os.urandom(3000)})
            except StoreFull as error:
                refused += 1
                assert "full" in error.detail
                assert bench.store.state.rev == before
                assert bench.store.in_doubt
                break
        assert refused, "200 writes found room on a full disk"
        rev, truth = bench.store.state.rev, bench.documents()
        ballast.unlink()
        assert bench.store.settle() == []
        assert bench.put("hello", {"v": "after"}) == rev + 1
        bench.reopen()
        assert bench.store.state.rev == rev + 1
        assert survey(bench.db, CLUSTER, bench.key).ok
        assert {key: value for key, value in bench.documents().items() if key != ("apps", "hello")} == {
            key: value for key, value in truth.items() if key != ("apps", "hello")
        }
    finally:
        bench.close()


@pytest.mark.root
@as_root
def test_a_full_disk_keeps_the_old_password(small_disk: Path) -> None:
    path = small_disk / "keyset.json"
    keyset, sdek = keysets.create(CLUSTER, "the old password", CHEAP)
    keysets.save(path, keyset)
    ballast = fill(small_disk)
    with pytest.raises(StoreFull):
        keysets.save(path, keysets.with_password(keyset, sdek, "the new password", CHEAP))
    assert keysets.load(path) == keyset
    ballast.unlink()
    keysets.save(path, keysets.with_password(keyset, sdek, "the new password", CHEAP))


@pytest.mark.root
@as_root
def test_a_read_only_disk_is_named_and_is_no_damage(tmp_path: Path, small_disk: Path) -> None:
    bench = Bench(small_disk)
    bench.put("hello", {"v": 1})
    bench.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        with pytest.raises(StoreUnavailable) as caught:
            Store(bench.db, CLUSTER, bench.key)
        assert str(bench.db) in caught.value.detail
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    bench.reopen()
    assert bench.put("hello", {"v": 2}) == 2
    bench.close()


def test_a_write_error_in_the_middle_refuses_the_write_whole_and_recovers(bench: Bench) -> None:
    """RLIMIT_FSIZE: the write-ahead log cannot grow, and write(2) says EFBIG, which SQLite reports as an I/O error."""
    bench.put("hello", {"v": 1})
    bench.close()

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        bench.reopen()
        bench.put("hello", {"v": 2})
        limit = used(Path(f"{bench.db}-wal")) + 5000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(StoreUnavailable):
            bench.put("hello", {"v": 3, "x": "x" * 20_000})
        assert bench.store.state.rev == 2
        with pytest.raises(StoreUnavailable, match="an earlier write failed"):
            bench.put("hello", {"v": 3})
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert bench.store.settle() == []
        assert bench.put("hello", {"v": 4}) == 3

    in_own_process(work)
    bench.reopen()
    assert bench.store.state.rev == 3


def fail_syncs() -> None:
    """From now on fsync and fdatasync of this thread say EIO, as a dying disk does. By seccomp: for this thread alone."""
    import platform

    fsync, fdatasync, arch = {"x86_64": (74, 75, 0xC000003E), "aarch64": (82, 83, 0xC00000B7)}[platform.machine()]
    load, equal, ret = 0x20, 0x15, 0x06
    allow, eio = 0x7FFF0000, 0x00050000 | 5
    program = [
        (load, 0, 0, 4), (equal, 0, 3, arch),
        (load, 0, 0, 0), (equal, 2, 0, fsync), (equal, 1, 0, fdatasync),
        (ret, 0, 0, allow), (ret, 0, 0, eio),
    ]  # fmt: skip
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    filter_ = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.create_string_buffer(filter_), 0, 0) == 0, os.strerror(ctypes.get_errno())


def test_a_sync_that_fails_is_refused_and_settled_into_kept_or_absent(bench: Bench) -> None:
    """The transaction is in the write-ahead log and not on the disk: nobody may say yes, and nobody may forget it."""
    bench.put("hello", {"v": 1})
    bench.close()

    def work() -> None:
        bench.reopen()
        bench.put("hello", {"v": 2})
        outcome: list[BaseException] = []

        def on_a_dying_disk() -> None:
            fail_syncs()
            for attempt in (lambda: bench.put("hello", {"v": 3}, idem="k"), bench.store.settle):
                try:
                    attempt()
                except PiccoloError as error:
                    outcome.append(error)

        thread = threading.Thread(target=on_a_dying_disk)
        thread.start()
        thread.join()
        assert [type(error) for error in outcome] == [StoreUnavailable, StoreUnavailable]
        assert bench.store.state.rev == 2
        assert bench.store.in_doubt

        found = bench.store.settle()
        bench.store.fold_found(found)
        assert bench.store.state.rev == 2 + len(found)
        assert bench.put("hello", {"v": 3}, idem="k") == 3, "the retry finds its own write, or makes it now"
        assert bench.put("hello", {"v": 4}) == 4

    in_own_process(work)
    bench.reopen()
    assert bench.store.state.rev == 4
    assert survey(bench.db, CLUSTER, bench.key).ok


def test_a_folder_that_is_gone_is_named(bench: Bench) -> None:
    bench.close()
    shutil.rmtree(bench.db.parent)
    assert not survey(bench.db, CLUSTER, bench.key).ok

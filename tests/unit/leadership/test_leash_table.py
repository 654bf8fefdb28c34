from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from piccolod.leadership import leash_table
from piccolod.leadership.leash_table import Entry, TableReader
from piccolod.paths import Paths

from .conftest import Containers, armed, assert_alive, gone, wait_for

UNIFIED = Path("/sys/fs/cgroup/unified") if Path("/sys/fs/cgroup/unified").is_dir() else Path("/sys/fs/cgroup")


def test_what_is_written_is_read_back_and_nothing_else_lies_there(paths: Paths) -> None:
    entry = armed(paths, os.getpid())
    assert leash_table.read(paths.leash) == {"c1.armed": entry}
    assert os.listdir(paths.leash) == ["c1.armed"]
    assert (paths.leash / "c1.armed").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"{}", b"container", b"container c1\n", b"\xff\xfe", b"container c1\npid x\n", b"nothing 1\n"],
)
def test_an_unreadable_entry_hides_no_other(paths: Paths, content: bytes) -> None:
    entry = armed(paths, os.getpid())
    (paths.leash / "bad.armed").write_bytes(content)
    assert leash_table.read(paths.leash) == {"c1.armed": entry}


def test_an_entry_with_a_field_of_another_type_is_unreadable(paths: Paths) -> None:
    entry = armed(paths, os.getpid())
    file = paths.leash / entry.file
    file.write_text(file.read_text().replace(f"token {entry.token}\n", "token seven\n"))
    assert leash_table.read(paths.leash) == {}


def test_an_entry_that_was_cut_anywhere_is_unreadable(paths: Paths) -> None:
    entry = armed(paths, os.getpid())
    file = paths.leash / entry.file
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert leash_table.read(paths.leash) == {}, whole[:size]
    file.write_bytes(whole)
    assert leash_table.read(paths.leash) == {entry.file: entry}


@pytest.mark.parametrize("resource", ["app:x\npid 1", "app:x\n"])
def test_a_field_that_would_be_two_lines_is_refused(paths: Paths, resource: str) -> None:
    entry = armed(paths, os.getpid())
    with pytest.raises(ValueError, match="line"):
        leash_table.write(paths.leash, entry._replace(resource=resource))
    assert leash_table.read(paths.leash) == {entry.file: entry}


@pytest.mark.parametrize("resource", ["app:with space", "app:line\u2028separator", "app:carriage\rreturn", "app:ü"])
def test_any_other_character_is_read_back(paths: Paths, resource: str) -> None:
    entry = armed(paths, os.getpid())._replace(resource=resource)
    leash_table.write(paths.leash, entry)
    assert leash_table.read(paths.leash) == {entry.file: entry}


@pytest.mark.parametrize("container", ["", "../x", "a/b", ".hidden", "a\n", "x" * 200])
def test_a_container_id_that_is_no_file_name_is_refused(paths: Paths, container: str) -> None:
    with pytest.raises(ValueError):
        armed(paths, os.getpid(), name=container)
    assert os.listdir(paths.leash) == []


@pytest.mark.parametrize("cgroup", ["/", "/sys/fs/cgroup", "relative", "/sys/fs/cgroup/../.."])
def test_a_cgroup_whose_death_would_be_the_hosts_is_refused(paths: Paths, cgroup: str) -> None:
    with pytest.raises(ValueError, match="cgroup"):
        armed(paths, os.getpid(), cgroup=cgroup)


@pytest.mark.parametrize("pid", [-1, 0, 1])
def test_init_and_process_groups_are_never_named(paths: Paths, pid: int) -> None:
    with pytest.raises((ValueError, ProcessLookupError)):
        armed(paths, pid)


def test_removing_what_lives_is_refused(paths: Paths) -> None:
    entry = armed(paths, os.getpid())
    with pytest.raises(RuntimeError, match="not proven dead"):
        leash_table.remove(paths.leash, entry)
    assert leash_table.read(paths.leash)


def test_the_reader_follows_every_change(paths: Paths) -> None:
    reader = TableReader(paths.leash)
    assert reader.entries() == {}
    for n in range(200):
        entry = armed(paths, os.getpid(), name=f"c{n}")
        assert entry.file in reader.entries()
        leash_table.write(paths.leash, entry._replace(token=n + 1000))
        (paths.leash / f"c{n - 1}.armed").unlink(missing_ok=True)
        assert list(reader.entries()) == [entry.file]


def test_killing_takes_the_whole_pid_namespace_and_is_proven(paths: Paths, containers: Containers) -> None:
    init, everyone = containers.in_pid_namespace()
    entry = armed(paths, init)
    assert not leash_table.proven_dead(entry)
    leash_table.kill(entry)
    wait_for(lambda: all(map(gone, everyone)), "all are dead")
    wait_for(lambda: leash_table.proven_dead(entry), "it is proven")
    leash_table.kill(entry)
    leash_table.remove(paths.leash, entry)
    assert leash_table.read(paths.leash) == {}


def test_a_cgroup_with_a_survivor_is_not_proven_dead(paths: Paths, containers: Containers) -> None:
    pid, everyone, cgroup = containers.in_cgroup(UNIFIED)
    entry = armed(paths, pid, cgroup=str(cgroup))
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: gone(pid), "init is dead")
    assert not leash_table.proven_dead(entry)
    leash_table.kill(entry)
    wait_for(lambda: leash_table.proven_dead(entry), "the rest is dead too")
    assert all(map(gone, everyone))


@pytest.mark.skipif(not Path("/sys/fs/cgroup/pids").is_dir(), reason="a host with cgroup v1")
def test_a_cgroup_without_cgroup_kill_dies_whole_too(paths: Paths, containers: Containers) -> None:
    pid, everyone, cgroup = containers.in_cgroup(Path("/sys/fs/cgroup/pids"))
    entry = armed(paths, pid, cgroup=str(cgroup))
    leash_table.kill(entry)
    wait_for(lambda: all(map(gone, everyone)) and leash_table.proven_dead(entry), "all members are dead")


def test_a_process_of_another_time_or_boot_is_neither_killed_nor_waited_for(paths: Paths, containers: Containers) -> None:
    init, everyone = containers.in_pid_namespace()
    entry = armed(paths, init)
    for other in (entry._replace(start_ticks=entry.start_ticks + 1), entry._replace(boot_id="0" * 36)):
        assert leash_table.proven_dead(other)
        leash_table.kill(other)
    assert_alive(everyone)


def test_a_zombie_is_dead(paths: Paths) -> None:
    process = subprocess.Popen(["sleep", "1000"])
    entry = armed(paths, process.pid)
    process.kill()
    wait_for(lambda: gone(process.pid), "it is a zombie")
    assert leash_table.proven_dead(entry)
    process.wait()


def test_no_entry_is_made_of_a_process_that_is_not_there() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(ProcessLookupError):
        leash_table.entry_of("c1", "app:a", 1, 1, pid=process.pid)


def test_a_write_that_fails_leaves_the_entry_as_it_was(paths: Paths) -> None:
    entry = armed(paths, os.getpid())
    with pytest.raises(ValueError):
        leash_table.write(paths.leash, Entry(entry.container, "", 9, 9, "", entry.pid, entry.start_ticks, entry.boot_id))
    assert leash_table.read(paths.leash) == {entry.file: entry}
    assert os.listdir(paths.leash) == [entry.file]

"""The process of a leash: small, locked into memory, hard to end, and not impressed by what it is sent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from piccolod import clock
from piccolod.leadership import leash, leash_lock, leash_table
from piccolod.leadership.leash_probe import LeashProbe, command
from piccolod.leadership.page import PageWriter
from piccolod.paths import Paths
from tests.node import ROOT

from .conftest import OPEN, Containers, Leashes, a_page, arm, armed, ask, gone, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="leashes serve root alone")


def test_a_leash_is_small_enough_to_be_read() -> None:
    assert len(Path(leash.__file__).read_text().splitlines()) < 150


def test_a_leash_imports_little() -> None:
    """Each of these would cost both leashes half a MiB of locked memory, and brings others with it."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import piccolod.leadership.leash; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True)
    assert {"typing", "re", "json", "pathlib", "dataclasses"}.isdisjoint(done.stdout.split())


def test_after_the_deadline_a_leash_rests(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    init, _ = containers.in_pid_namespace()
    armed(paths, init)
    page_writer.write(a_page(OPEN, hard_at=clock.now() - 1))
    process = leashes.start(0)
    wait_for(lambda: gone(init), "the container is dead")

    def ticks() -> int:
        fields = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[11]) + int(fields[12])

    before, started = ticks(), time.monotonic()
    wait_for(lambda: time.monotonic() - started > 0.5, "half a second")
    assert ticks() - before <= 10, "a leash that spins takes 50 ticks in half a second"


def test_it_outlives_its_supervisor(paths: Paths, page_writer: PageWriter, containers: Containers) -> None:
    page_writer.write(a_page(OPEN))
    init, _ = containers.in_pid_namespace()
    armed(paths, init)
    supervisor = os.fork()
    if supervisor == 0:
        Leashes(paths).start(0)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(supervisor, 0)
    try:
        assert ask(paths, 0, "PING").startswith("PONG ")
        page_writer.write(a_page({}))
        wait_for(lambda: gone(init), "the orphaned leash killed it, though nobody reads its log")
        assert ask(paths, 0, "PING") == f"PONG {leash_lock.holder(paths.leash, 0)}"
    finally:
        assert leash_lock.signal_holder(paths.leash, 0, signal.SIGTERM)
        wait_for(lambda: leash_lock.holder(paths.leash, 0) is None, "it ended: it guards nobody alive")


def test_sigterm_waits_for_the_last_guarded_container(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    page_writer.write(a_page(OPEN))
    process = leashes.start(0)
    init, _ = containers.in_pid_namespace()
    entry = armed(paths, init)
    arm(paths, entry)
    process.terminate()
    assert ask(paths, 0, "PING") == f"PONG {process.pid}"
    assert ask(paths, 0, f"DISARM {entry.file}") == "ALIVE"
    os.kill(init, signal.SIGKILL)
    assert process.wait(timeout=5) == 0, "its container died by itself: nobody disarms it"
    assert leash_table.proven_dead(entry)


def test_a_second_leash_of_the_same_index_ends_at_once(paths: Paths, page_writer: PageWriter, leashes: Leashes) -> None:
    first = leashes.start(0)
    second = subprocess.run(command(sys.executable, paths.page, paths.leash, 0), timeout=5, check=False)
    assert second.returncode == 0
    assert ask(paths, 0, "PING") == f"PONG {first.pid}"


def test_what_it_needs_to_kill_is_in_locked_memory(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    """No page of its code waits on a disk, and the kill itself asks for next to no memory."""
    page_writer.write(a_page(OPEN))
    process = leashes.start(0)
    init, _ = containers.in_pid_namespace()
    arm(paths, armed(paths, init))
    assert not [line for line in mapped_files(process.pid) if line.resident < line.size or not line.locked]
    minor, major = faults(process.pid)
    page_writer.write(a_page({}))
    wait_for(lambda: gone(init), "it is dead")
    after_minor, after_major = faults(process.pid)
    assert after_major == major
    assert after_minor - minor <= 8


class Mapping(NamedTuple):
    name: str
    size: int
    resident: int
    locked: bool


def mapped_files(pid: int) -> list[Mapping]:
    """The readable mappings of files, as smaps(5) tells."""
    found: list[Mapping] = []
    name, size, resident = "", 0, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        match line.split():
            case [span, rights, _, _, _, *path] if not span.endswith(":"):
                name = path[0] if path and path[0].startswith("/") and rights.startswith("r") else ""
            case ["Size:", number, _]:
                size = int(number)
            case ["Rss:", number, _]:
                resident = int(number)
            case ["VmFlags:", *flags] if name:
                found.append(Mapping(name, size, resident, "lo" in flags))
    assert any("python" in mapping.name for mapping in found)
    return found


def faults(pid: int) -> tuple[int, int]:
    """(minor, major) page faults of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[7]), int(fields[9])


@pytest.mark.parametrize("message", ["", "ARM", "ARM ../x.armed", "ARM nothing.armed", "DISARM", "FOO", "\0\xff", "x" * 5000])
def test_garbage_is_answered_or_dropped_and_the_leash_lives(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, message: str
) -> None:
    process = leashes.start(0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(2)
        link.connect(str(paths.leash_socket(0)))
        link.send(message.encode("latin1"))
    assert ask(paths, 0, "PING") == f"PONG {process.pid}"


def test_only_root_is_served(paths: Paths, page_writer: PageWriter, leashes: Leashes) -> None:
    leashes.start(0)
    assert paths.leash_socket(0).stat().st_mode & 0o777 == 0o600
    for folder in (paths.run.parent, paths.run, paths.leash):
        folder.chmod(0o755)
    paths.leash_socket(0).chmod(0o666)  # even if the file's mode were wrong
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            os._exit(0 if ask(paths, 0, "PING") == "" else 1)
        except OSError:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_log_that_nobody_reads_delays_no_kill(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    """The log's pipe is full to the brim when the kill comes."""
    page_writer.write(a_page(OPEN))
    process = leashes.start(0)
    assert process.stderr is not None
    with open(f"/proc/{process.pid}/fd/2", "wb", buffering=0) as pipe:
        os.set_blocking(pipe.fileno(), False)
        while pipe.write(b"x" * 4096):
            pass
    init, _ = containers.in_pid_namespace()
    arm(paths, armed(paths, init))
    page_writer.write(a_page({}))
    wait_for(lambda: gone(init), "it is dead all the same")
    assert ask(paths, 0, "PING").startswith("PONG")


def test_a_frozen_leash_is_seen_and_can_be_replaced(paths: Paths, page_writer: PageWriter, leashes: Leashes) -> None:
    process = leashes.start(0)
    probe = LeashProbe(paths.leash_socket(0), clock.now())
    wait_for(lambda: probe.tick(clock.now()) < 0.1, "it is heard")
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: probe.tick(clock.now()) > 0.3, "its silence is seen")
    assert leash_lock.holder(paths.leash, 0) == process.pid
    assert leash_lock.signal_holder(paths.leash, 0, signal.SIGKILL)
    process.wait()
    assert leash_lock.holder(paths.leash, 0) is None
    leashes.start(0)
    wait_for(lambda: probe.tick(clock.now()) < 0.1, "the same probe hears the successor")
    probe.close()


def test_nobody_is_signalled_when_no_leash_runs(paths: Paths) -> None:
    assert leash_lock.holder(paths.leash, 0) is None
    Path(leash_lock.lock_file(paths.leash, 0)).write_text(str(os.getpid()))
    assert not leash_lock.signal_holder(paths.leash, 0, signal.SIGKILL)

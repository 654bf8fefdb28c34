from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from piccolod import clock
from piccolod.errors import Busy, Failed, Unavailable
from piccolod.leadership import leash, leash_lock, leash_table
from piccolod.leadership.guard import GUARD_TICK_S
from piccolod.leadership.leash_client import LeashClient
from piccolod.leadership.leash_probe import LeashProbe
from piccolod.leadership.page import PageWriter, Term, create
from piccolod.paths import Paths
from tests.node import ROOT

from .conftest import Containers, Leashes, a_page, armed, gone, wait_for

# Scheduling on a shared machine; the promise itself is the guard tick.
SLACK_S = 0.005
UNIFIED = Path("/sys/fs/cgroup/unified") if Path("/sys/fs/cgroup/unified").is_dir() else Path("/sys/fs/cgroup")
OPEN = {"app:notes": Term(7, 1)}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="leashes serve root alone")


def ask(paths: Paths, index: int, message: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(2)
        link.connect(str(paths.leash_socket(index)))
        link.send(message.encode())
        return link.recv(512).decode()


def died_at(pidfd: int, timeout_s: float = 5.0) -> float:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(timeout_s * 1000), f"still alive after {timeout_s} s"
    return clock.now()


def assert_stays_alive(pids: list[int], for_s: float) -> None:
    """Nobody dies meanwhile: a guard would have acted within a tick."""
    pidfds = [os.pidfd_open(pid) for pid in pids]
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    try:
        assert not poll.poll(for_s * 1000)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def test_a_leash_is_small_enough_to_be_read() -> None:
    assert len(Path(leash.__file__).read_text().splitlines()) < 150


def test_a_leash_imports_little() -> None:
    """Each of these would cost both leashes half a MiB of locked memory, and brings others with it."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import piccolod.leadership.leash; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True)
    assert {"typing", "re", "json", "pathlib", "dataclasses"}.isdisjoint(done.stdout.split())


def test_at_the_deadline_the_whole_tree_dies_within_a_guard_tick(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    late = []
    for round_ in range(5):
        init, everyone = containers.in_pid_namespace()
        hard_at = clock.now() + 0.4
        page_writer.write(a_page(OPEN, hard_at=hard_at, sid=round_ + 1))
        if round_ == 0:
            leashes.start(0)
        entry = armed(paths, init, name=f"c{round_}")
        assert ask(paths, 0, f"ARM {entry.file}") == "ACK"
        pidfd = os.pidfd_open(init)
        late.append(died_at(pidfd) - hard_at)
        os.close(pidfd)
        assert late[-1] >= 0, "killed before the deadline"
        wait_for(lambda: all(map(gone, everyone)), "the whole tree is dead")  # noqa: B023
        assert leash_table.proven_dead(entry)
    assert min(late) <= GUARD_TICK_S + SLACK_S, late
    assert sorted(late)[2] <= GUARD_TICK_S + SLACK_S, late


def test_a_cgroup_dies_whole_even_without_a_pid_namespace(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    pid, everyone, cgroup = containers.in_cgroup(UNIFIED)
    page_writer.write(a_page(OPEN))
    leashes.start(0)
    entry = armed(paths, pid, cgroup=str(cgroup))
    assert ask(paths, 0, f"ARM {entry.file}") == "ACK"
    page_writer.write(a_page({}))
    wait_for(lambda: all(map(gone, everyone)), "every process of the cgroup is dead")
    wait_for(lambda: leash_table.proven_dead(entry), "it is proven")


def test_a_term_that_left_the_page_or_changed_its_token_costs_its_container(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    page_writer.write(a_page({**OPEN, "app:other": Term(9, 1)}))
    leashes.start(0)
    kept, _ = containers.in_pid_namespace()
    lost, _ = containers.in_pid_namespace()
    for entry in (armed(paths, kept, name="kept", resource="app:other", token=9), armed(paths, lost, name="lost")):
        assert ask(paths, 0, f"ARM {entry.file}") == "ACK"
    page_writer.write(a_page({"app:notes": Term(8, 2), "app:other": Term(9, 1)}))
    wait_for(lambda: gone(lost), "the container of the old term is dead")
    assert_stays_alive([kept], 4 * GUARD_TICK_S)


def test_a_closing_term_has_until_the_deadline_and_no_longer(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    hard_at = clock.now() + 0.6
    page_writer.write(a_page({"app:notes": Term(7, 1, closing=True)}, hard_at=hard_at))
    leashes.start(0)
    init, _ = containers.in_pid_namespace()
    assert ask(paths, 0, f"ARM {armed(paths, init).file}") == "ACK"
    os.kill(init, signal.SIGTERM)
    pidfd = os.pidfd_open(init)
    assert died_at(pidfd) >= hard_at
    os.close(pidfd)


def test_nothing_dies_while_the_deadline_is_infinite_and_every_writer_is_dead(
    paths: Paths, leashes: Leashes, containers: Containers
) -> None:
    create(paths.page)
    writer = PageWriter(paths.page)
    writer.write(a_page(OPEN))
    writer.close()
    leashes.start_all()
    _, everyone = containers.in_pid_namespace()
    entry = armed(paths, everyone[0])
    for index in (0, 1):
        assert ask(paths, index, f"ARM {entry.file}") == "ACK"
    assert_stays_alive(everyone, 6 * GUARD_TICK_S)


def test_a_killed_leash_takes_nobody_along_and_its_successor_knows_everything(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    page_writer.write(a_page(OPEN))
    leashes.start(0)
    init, everyone = containers.in_pid_namespace()
    assert ask(paths, 0, f"ARM {armed(paths, init).file}") == "ACK"
    leashes.kill(0)
    assert_stays_alive(everyone, 4 * GUARD_TICK_S)
    leashes.start(0)
    page_writer.write(a_page({}))
    wait_for(lambda: all(map(gone, everyone)), "the successor killed what it was never told of")


def test_a_leash_that_starts_after_the_deadline_kills_at_once(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    init, _ = containers.in_pid_namespace()
    armed(paths, init)
    page_writer.write(a_page(OPEN, hard_at=clock.now() - 1))
    leashes.start(0)
    wait_for(lambda: gone(init), "the container is dead")


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


def test_a_recycled_pid_is_not_killed(paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers) -> None:
    """The entry names a process that started at another time: whoever has its pid now is not the container."""
    init, everyone = containers.in_pid_namespace()
    entry = armed(paths, init)._replace(start_ticks=1)
    leash_table.write(paths.leash, entry)
    page_writer.write(a_page({}))
    leashes.start(0)
    assert leash_table.proven_dead(entry)
    assert_stays_alive(everyone, 4 * GUARD_TICK_S)


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
    assert ask(paths, 0, f"ARM {entry.file}") == "ACK"
    process.terminate()
    assert ask(paths, 0, "PING") == f"PONG {process.pid}"
    assert ask(paths, 0, f"DISARM {entry.file}") == "ALIVE"
    os.kill(init, signal.SIGKILL)
    assert process.wait(timeout=5) == 0, "its container died by itself: nobody disarms it"
    assert leash_table.proven_dead(entry)


def test_a_second_leash_of_the_same_index_ends_at_once(paths: Paths, page_writer: PageWriter, leashes: Leashes) -> None:
    import subprocess
    import sys

    from piccolod.leadership.leash_probe import command

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
    assert ask(paths, 0, f"ARM {armed(paths, init).file}") == "ACK"
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
    assert ask(paths, 0, f"ARM {armed(paths, init).file}") == "ACK"
    page_writer.write(a_page({}))
    wait_for(lambda: gone(init), "it is dead all the same")
    assert ask(paths, 0, "PING").startswith("PONG")


# --- the client


def test_armed_means_synced_and_acknowledged_by_both(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    page_writer.write(a_page(OPEN))
    leashes.start_all()
    init, _ = containers.in_pid_namespace()
    entry = leash_table.entry_of("c1", "app:notes", 7, 1, pid=init)
    asyncio.run(LeashClient(paths).arm(entry))
    assert leash_table.read(paths.leash) == {entry.file: entry}
    for survivor in (0, 1):
        assert ask(paths, survivor, f"DISARM {entry.file}") == "ALIVE", "each holds it itself"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_with_one_leash_dead_or_frozen_nothing_is_started_and_the_other_guards(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers, how: signal.Signals
) -> None:
    page_writer.write(a_page(OPEN))
    leashes.start_all()
    init, _ = containers.in_pid_namespace()
    leashes.processes[1].send_signal(how)
    entry = leash_table.entry_of("c1", "app:notes", 7, 1, pid=init)
    with pytest.raises(Unavailable, match="1 of 2"):
        asyncio.run(LeashClient(paths).arm(entry))
    assert asyncio.run(LeashClient(paths).guards()) == 1
    page_writer.write(a_page({}))
    wait_for(lambda: gone(init), "the other leash killed it")


def test_without_any_leash_nothing_is_started(paths: Paths, containers: Containers) -> None:
    init, _ = containers.in_pid_namespace()
    with pytest.raises(Unavailable, match="0 of 2"):
        asyncio.run(LeashClient(paths).arm(leash_table.entry_of("c1", "app:notes", 7, 1, pid=init)))


def test_disarming_what_lives_is_refused_and_changes_nothing(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    page_writer.write(a_page(OPEN))
    leashes.start_all()
    init, _ = containers.in_pid_namespace()
    entry = leash_table.entry_of("c1", "app:notes", 7, 1, pid=init)
    client = LeashClient(paths)
    asyncio.run(client.arm(entry))
    with pytest.raises(Failed, match="not proven dead"):
        asyncio.run(client.disarm(entry))
    assert leash_table.read(paths.leash) == {entry.file: entry}
    os.kill(init, signal.SIGKILL)
    wait_for(lambda: leash_table.proven_dead(entry), "it is dead")
    asyncio.run(client.disarm(entry))
    asyncio.run(client.disarm(entry))
    assert leash_table.read(paths.leash) == {}


def test_a_container_that_runs_is_not_armed_over(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    page_writer.write(a_page(OPEN))
    leashes.start_all()
    first, _ = containers.in_pid_namespace()
    second, _ = containers.in_pid_namespace()
    client = LeashClient(paths)
    asyncio.run(client.arm(leash_table.entry_of("c1", "app:notes", 7, 1, pid=first)))
    with pytest.raises(Busy, match="still runs"):
        asyncio.run(client.arm(leash_table.entry_of("c1", "app:notes", 7, 1, pid=second)))
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: gone(first), "the first run is dead")
    asyncio.run(client.arm(leash_table.entry_of("c1", "app:notes", 7, 1, pid=second)))


# --- the supervisor's view


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


def test_a_page_that_is_gone_holds_no_term(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    """Absent is not leader, for a guard as for the gate."""
    page_writer.write(a_page(OPEN))
    leashes.start(0)
    init, _ = containers.in_pid_namespace()
    assert ask(paths, 0, f"ARM {armed(paths, init).file}") == "ACK"
    paths.page.unlink()
    wait_for(lambda: gone(init), "the container is dead")


def test_a_leash_that_was_frozen_over_the_deadline_kills_as_soon_as_it_thaws(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    hard_at = clock.now() + 0.3
    page_writer.write(a_page(OPEN, hard_at=hard_at))
    process = leashes.start(0)
    init, _ = containers.in_pid_namespace()
    assert ask(paths, 0, f"ARM {armed(paths, init).file}") == "ACK"
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: clock.now() > hard_at + 0.1, "the deadline has passed")
    assert not gone(init)
    process.send_signal(signal.SIGCONT)
    thawed_at, pidfd = clock.now(), os.pidfd_open(init)
    assert died_at(pidfd) - thawed_at <= GUARD_TICK_S + 0.1
    os.close(pidfd)

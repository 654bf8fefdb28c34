"""podman's service and the leashes: they outlive the supervisor, are adopted, and are replaced when they die or freeze."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from piccolod.leadership import leash_lock
from piccolod.leadership.page import PageWriter, Term
from piccolod.supervisor.known_process import KnownProcess, pid_file
from tests.unit.leadership.conftest import Containers, a_page, armed
from tests.unit.supervisor.conftest import gone, row, wait_for

pytestmark = [
    pytest.mark.podman,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("podman"), reason="needs root and podman"),
]
NAMES = ("podman", "leash.0", "leash.1")


@pytest.fixture
def node(make_node):
    made = make_node([row("broker"), row("m")], externals=True)
    yield made
    made.die()
    end_externals(made)


def end_externals(node) -> None:
    """What survives the supervisor is found by its files."""
    for index in range(2):
        leash_lock.signal_holder(node.paths.leash, index, signal.SIGKILL)
    known = KnownProcess.read(pid_file(node.paths))
    if known is not None and (pidfd := known.open()) >= 0:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        wait_for(lambda: gone(known.pid), "podman's service has ended")
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([each for each in mounts if each.startswith(f"{node.folder}/")]):
        subprocess.run(["umount", mount], check=True)  # podman binds its storage onto itself


def ppid(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def pids(node) -> dict[str, int]:
    return {name: node.pid(name) for name in NAMES}


def ping(node) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(3)
            link.connect(str(node.paths.podman_socket))
            link.sendall(b"GET /_ping HTTP/1.0\r\nHost: x\r\n\r\n")
            return b" 200 " in link.recv(100)
    except OSError:
        return False


def test_they_run_as_children_of_init_in_sessions_of_their_own(node):
    node.start()
    assert node.process is not None
    for pid in pids(node).values():
        assert ppid(pid) != node.process.pid
        assert os.getsid(pid) == pid
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert not [link for link in links if "lock" in link and "leash" not in link and "containers" not in link]
    assert ping(node)


def test_they_survive_kill_9_of_the_supervisor_and_are_adopted(node):
    node.start()
    before = pids(node)
    node.die()
    time.sleep(0.6)
    assert not [name for name, pid in before.items() if gone(pid)]
    assert ping(node)
    node.start()
    assert pids(node) == before


def test_they_survive_sigterm_and_are_ended_by_ctrl_c(node):
    node.start()
    before = pids(node)
    assert node.stop(signal.SIGTERM) == 0
    assert not [name for name, pid in before.items() if gone(pid)]
    node.start()
    assert pids(node) == before
    assert node.stop(signal.SIGINT) == 0
    wait_for(lambda: all(gone(pid) for pid in before.values()), "all have ended")


def test_a_killed_podman_service_is_back_within_two_seconds(node):
    node.start()
    pid = node.kill("podman")
    node.wait_replaced("podman", pid, timeout_s=4)
    assert ping(node)
    assert node.module("podman")["restarts"] == 1


def test_a_restart_by_request_is_no_crash_however_often(node):
    node.start()
    for _ in range(7):  # of six deaths within 30 s a crash loop is made
        pid = node.pid("podman")
        node.ask("restart", name="podman")
        node.wait_replaced("podman", pid, timeout_s=6)
    assert ping(node)


def test_a_frozen_podman_service_is_replaced(node):
    node.start()
    pid = node.kill("podman", signal.SIGSTOP)
    node.wait_replaced("podman", pid, timeout_s=12)
    assert gone(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_frozen_leash_is_replaced_and_told_of(node, number):
    node.start()
    pid = node.kill("leash.0", number)
    node.wait_replaced("leash.0", pid, timeout_s=5)
    assert gone(pid)
    wait_for(lambda: (node.sample / "events").exists() and '"key": "leash.0", "body": {"component": "leash.0", "level": "ERROR"' in node.read("events"),
             "an alarm was raised")  # fmt: skip


def test_the_supervisor_kills_a_container_whose_deadline_has_passed_though_both_leashes_are_frozen(node):
    node.start()
    containers = Containers()
    try:
        init, members = containers.in_pid_namespace()
        writer = PageWriter(node.paths.page)
        writer.write(a_page({"app:notes": Term(7, 1)}, hard_at=time.clock_gettime(time.CLOCK_BOOTTIME) + 0.6))
        for index in range(2):
            leash_lock.signal_holder(node.paths.leash, index, signal.SIGSTOP)
        armed(node.paths, init)
        wait_for(lambda: (containers.reap(), all(gone(pid) for pid in members))[1], "the container is dead", timeout_s=1.2)
        writer.close()
    finally:
        containers.close()


def test_the_supervisors_tick_shows_that_it_acts(node):
    from piccolod import clock
    from piccolod.supervisor.rundir import last_tick

    node.start()
    wait_for(lambda: clock.now() - last_tick(node.paths) < 0.5, "the tick is fresh")
    assert node.process is not None
    node.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: clock.now() - last_tick(node.paths) > 0.7, "the tick is stale")
    node.process.send_signal(signal.SIGCONT)
    wait_for(lambda: clock.now() - last_tick(node.paths) < 0.5, "the tick is fresh again")

"""Real pages, real leashes, real process trees; whatever a test started is dead when it ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from piccolod import clock
from piccolod.leadership import leash_lock, leash_table
from piccolod.leadership.leash_probe import LEASHES, LeashProbe, command
from piccolod.leadership.leash_table import Entry
from piccolod.leadership.page import Page, PageWriter, Term, create
from piccolod.paths import Paths


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 5.0) -> None:
    deadline_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_at, f"not within {timeout_s} s: {what}"
        time.sleep(0.002)


@pytest.fixture
def paths() -> Iterator[Paths]:
    folder = Path(tempfile.mkdtemp(prefix="lead"))
    made = Paths(state=folder / "state", run=folder / "run")
    for path in (made.state, made.run, made.leash, made.consensus, made.oci_hooks):
        path.mkdir(parents=True)
    yield made
    shutil.rmtree(folder)


@pytest.fixture
def page_writer(paths: Paths) -> Iterator[PageWriter]:
    create(paths.page)
    writer = PageWriter(paths.page)
    yield writer
    writer.close()


OPEN = {"app:notes": Term(7, 1)}


def a_page(terms: dict[str, Term], hard_at: float = clock.FOREVER, sid: int = 1) -> Page:
    return Page(0, 1, sid, 0, clock.boot_id(), hard_at, hard_at, terms)


class Leashes:
    """Starts leashes as the supervisor does."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, index: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command(sys.executable, self.paths.page, self.paths.leash, index),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.forget(index)
        self.processes[index] = process
        probe = LeashProbe(self.paths.leash_socket(index), 0.0)
        wait_for(
            lambda: leash_lock.holder(self.paths.leash, index) == process.pid and probe.tick(1.0) == 0.0,
            f"leash {index} answers",
        )
        probe.close()
        return process

    def start_all(self) -> None:
        for index in range(LEASHES):
            self.start(index)

    def kill(self, index: int) -> None:
        self.processes[index].kill()
        self.processes[index].wait()

    def forget(self, index: int) -> None:
        old = self.processes.pop(index, None)
        if old is not None:
            with contextlib.suppress(ProcessLookupError):
                old.kill()
            old.wait()
            assert old.stderr is not None
            old.stderr.close()

    def close(self) -> None:
        for index in list(self.processes):
            self.forget(index)


@pytest.fixture
def leashes(paths: Paths) -> Iterator[Leashes]:
    made = Leashes(paths)
    yield made
    made.close()


def ask(paths: Paths, index: int, message: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(2)
        link.connect(str(paths.leash_socket(index)))
        link.send(message.encode())
        return link.recv(512).decode()


def arm(paths: Paths, entry: Entry) -> None:
    """At leash 0."""
    assert ask(paths, 0, f"ARM {entry.file}") == "ACK"


class Containers:
    """Process trees that look like containers to a guard: an init with a start time, a pid namespace or a cgroup."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._cgroups: list[Path] = []

    def in_pid_namespace(self) -> tuple[int, list[int]]:
        """(pid of init, pids of all in it): init ignores SIGTERM and has two children."""
        script = "trap '' TERM; sleep 1000 & sleep 1000 & wait; wait"
        outer = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", script], start_new_session=True)
        self._processes.append(outer)
        wait_for(lambda: children(outer.pid) and len(children(children(outer.pid)[0])) == 2, "init and its children run")
        init = children(outer.pid)[0]
        return init, [init, *children(init)]

    def in_cgroup(self, mount: Path) -> tuple[int, list[int], Path]:
        """Without a pid namespace: two processes of two sessions that only the cgroup holds together."""
        cgroup = mount / f"lead-test-{os.getpid()}-{len(self._cgroups)}"
        cgroup.mkdir()
        self._cgroups.append(cgroup)
        script = f"echo $$ > {cgroup}/cgroup.procs; setsid sleep 1000 & exec sleep 1000"
        process = subprocess.Popen(["sh", "-c", script], start_new_session=True)
        self._processes.append(process)
        wait_for(lambda: len((cgroup / "cgroup.procs").read_text().split()) == 2, "both are in the cgroup")
        wait_for(
            lambda: all(b"sleep" in cmdline(int(pid)) for pid in (cgroup / "cgroup.procs").read_text().split()), "both sleep"
        )
        return process.pid, [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()], cgroup

    def reap(self) -> None:
        for process in self._processes:
            process.poll()

    def close(self) -> None:
        for cgroup in self._cgroups:
            for pid in (cgroup / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for process in self._processes:
            for pid in (*children(process.pid), process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        for cgroup in self._cgroups:
            wait_for(lambda: not (cgroup / "cgroup.procs").read_text().split(), "the cgroup is empty")  # noqa: B023
            cgroup.rmdir()


@pytest.fixture
def containers() -> Iterator[Containers]:
    made = Containers()
    yield made
    made.close()


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def gone(pid: int) -> bool:
    """Exited: no such process, or only its zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def armed(paths: Paths, pid: int, *, name: str = "c1", resource: str = "app:notes", token: int = 7, cgroup: str = "") -> Entry:
    entry = leash_table.entry_of(name, resource, token, 1, pid=pid, cgroup=cgroup)
    leash_table.write(paths.leash, entry)
    return entry


def assert_alive(pids: list[int]) -> None:
    assert not [pid for pid in pids if gone(pid)]

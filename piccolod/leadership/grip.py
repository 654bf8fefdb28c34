"""A hold on one container that needs no lookup when it must die: pidfd and cgroup files are opened beforehand.

Standard library only; never podman, whose answers can hang.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from contextlib import suppress

from piccolod import clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, Self  # noqa: UP035

# systemd's unified and hybrid layouts.
_CGROUP2_MOUNTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)


def process_start(pid: int) -> int:
    """When the process started, in ticks since boot: with the pid it names a process for ever (proc(5), `starttime`).

    Raises ProcessLookupError when there is none.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except _GONE:
        raise ProcessLookupError(f"no process {pid}") from None


def own_cgroup(pid: int, container: str) -> str:
    """The cgroup v2 folder of the process if it is the container's own, named after it; else empty."""
    with suppress(*_GONE), open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        lines = (line.rstrip("\n").split(":", 2) for line in file)
        path = next((path for number, _, path in lines if number == "0"), "")
        if container in path.rpartition("/")[2]:
            return next((mount + path for mount in _CGROUP2_MOUNTS if os.path.exists(f"{mount}{path}/cgroup.kill")), "")
    return ""


class Grip:
    """Raises OSError only when descriptors run out; a container that is gone already gives a grip on nothing."""

    def __init__(self, pid: int, start_ticks: int, cgroup: str, boot_id: str) -> None:
        self._cgroup = cgroup if boot_id == clock.boot_id() else ""
        self._pidfd = self._open_init(pid, start_ticks) if boot_id == clock.boot_id() else -1
        self._kill_fd = -1
        if self._cgroup:
            with suppress(*_GONE, PermissionError):
                self._kill_fd = os.open(f"{self._cgroup}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)

    @staticmethod
    def _open_init(pid: int, start_ticks: int) -> int:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):  # nobody, or now a thread of somebody
                return -1
            raise
        # Opened first, compared second: what the descriptor holds cannot change hands any more.
        with suppress(ProcessLookupError):
            if process_start(pid) == start_ticks:
                return pidfd
        os.close(pidfd)
        return -1

    def kill(self) -> None:
        """SIGKILL for every process of the container. Safe to repeat."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if self._kill_fd >= 0:
            with suppress(OSError):
                os.write(self._kill_fd, b"1")
        elif self._cgroup:
            self._kill_members()

    def proven_dead(self) -> bool:
        """Init has exited, which for a pid namespace is the exit of all in it, and the cgroup is empty."""
        if self._pidfd >= 0:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(0):
                return False
        return not self._cgroup or self._cgroup_is_empty()

    def close(self) -> None:
        for fd in (self._pidfd, self._kill_fd):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._kill_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _kill_members(self) -> None:
        """For a cgroup without `cgroup.kill` (v1, or Linux before 5.14)."""
        for pid in set(self._members()):
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    # The pid may have changed hands between the list and the descriptor.
                    if pid in self._members():
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)

    def _members(self) -> Iterator[int]:
        for folder, _, files in os.walk(self._cgroup):
            if "cgroup.procs" in files:
                with suppress(*_GONE), open(f"{folder}/cgroup.procs", "rb") as file:
                    yield from map(int, file.read().split())

    def _cgroup_is_empty(self) -> bool:
        try:
            with open(f"{self._cgroup}/cgroup.events", "rb") as file:
                return b"populated 0" in file.read()
        except _GONE:
            pass
        except OSError as error:
            return error.errno == errno.ENODEV  # the cgroup was removed while it was open
        try:
            return not any(self._members())
        except OSError:
            return False


def rehearse() -> None:
    """Kills a child of our own as a container is killed: what that way needs of code and memory is there from now on.

    Raises nothing: without a process to spare the guard guards all the same.
    """
    with suppress(OSError):
        pid = os.fork()
        if pid == 0:
            time.sleep(1.0)  # it ends by itself, should we die in between
            os._exit(0)
        with Grip(pid, process_start(pid), "", clock.boot_id()) as grip:
            while not grip.proven_dead():
                grip.kill()
        os.waitpid(pid, 0)

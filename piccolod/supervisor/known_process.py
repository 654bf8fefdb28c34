"""A process that is not our child, named so that nothing that merely reuses its pid is taken for it."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from piccolod import clock
from piccolod.leadership.grip import process_start
from piccolod.paths import Paths


class KnownProcess(NamedTuple):
    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> KnownProcess:
        """Raises ProcessLookupError."""
        return cls(pid, process_start(pid), clock.boot_id())

    @classmethod
    def read(cls, file: Path) -> KnownProcess | None:
        """From its pid file; None when that is absent or unreadable."""
        try:
            raw = json.loads(file.read_bytes())
            known = cls(int(raw["pid"]), int(raw["start_ticks"]), str(raw["boot_id"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return known if known.pid > 1 else None

    def write(self, file: Path) -> None:
        draft = file.with_name(f"{file.name}.{os.getpid()}")
        draft.write_text(json.dumps(self._asdict()))
        os.replace(draft, file)

    def open(self) -> int:
        """Its pidfd, the caller's; -1 when it has ended."""
        if self.boot_id != clock.boot_id():
            return -1
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError:
            return -1
        # Opened first, compared second: what the descriptor holds cannot change hands any more.
        with suppress(ProcessLookupError):
            if process_start(self.pid) == self.start_ticks and not _is_zombie(self.pid):
                return pidfd
        os.close(pidfd)
        return -1

    def stopped(self) -> bool:
        return is_stopped(self.pid)


def is_stopped(pid: int) -> bool:
    """SIGSTOP, or a debugger."""
    return state_of(pid) in (b"T", b"t")


def pid_file(paths: Paths) -> Path:
    """Of podman's service."""
    return paths.podman_socket.with_suffix(".pid")


def kill(pidfd: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def _is_zombie(pid: int) -> bool:
    return state_of(pid) in (b"Z", b"X")


def state_of(pid: int) -> bytes:
    """As ps shows it, T for one that is stopped; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return b""

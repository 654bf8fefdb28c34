"""What the host shows of volumes, found without asking the code under test."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def children_of(folder: Path) -> list[int]:
    """Living processes whose command line names something below `folder`."""
    wanted = os.fsencode(folder)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if any(part.startswith(wanted) for part in (entry / "cmdline").read_bytes().split(b"\0")):
                    found.append(int(entry.name))
    return found


def gocryptfs(folder: Path) -> list[int]:
    return [pid for pid in children_of(folder) if "gocryptfs" in _comm(pid)]


def _comm(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def loops(folder: Path) -> list[str]:
    """Files below `folder` that a loop device still holds."""
    files = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            files.append(entry.read_text().strip())
    return [file for file in files if file.startswith(str(folder))]

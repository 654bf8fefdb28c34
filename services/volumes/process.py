"""Processes by identity, and programs that are called with a deadline."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from piccolod.errors import DeadlineExceeded, Failed


def start_time(pid: int) -> int:
    """Clock ticks between boot and the start of `pid`; 0 when it is gone or only waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


def alive(pid: int, started: int) -> bool:
    """Whether the very process that was started then is still there."""
    return pid > 0 and started > 0 and start_time(pid) == started


def wait_gone(pid: int, started: int, timeout_s: float) -> bool:
    """Waits for the end of a process, child or not; reaps it when it is a child."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        if not alive(pid, started):
            return True
        # poll, not select: a descriptor may be above 1024.
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(fd)
        reap(pid)


def reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def kill(pid: int, started: int, number: signal.Signals) -> None:
    """Signals the very process that was started then, never a later one with its number."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if alive(pid, started):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)


def run(*argv: str, timeout_s: float, stdin: bytes = b"", keep: tuple[int, ...] = (), fine: tuple[int, ...] = (0,)) -> str:
    """Runs a program to its end and returns what it printed. Raises Failed with its last words, DeadlineExceeded.

    `fine` are the exit codes of success. It runs in a session of its own and `keep` (a volume's lock) stays open in it:
    should this process die, the work is finished, and whoever comes next waits for it. A program that hangs in the kernel
    is left behind, not waited for.
    """
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=keep,
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
    )
    try:
        output, _ = process.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        raise DeadlineExceeded(f"{argv[0]} did not end within {timeout_s:.0f} s") from None
    text = output.decode(errors="replace").strip()
    if process.returncode not in fine:
        last = text.splitlines()[-1] if text else f"exit {process.returncode}"
        raise Failed(f"{argv[0]} failed: {last}")
    return text

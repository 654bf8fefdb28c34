"""Processes that outlive the supervisor: sessions of their own, children of init, never of ours.

What a descendant leaves behind would become ours, as we adopt orphans: conmon and the containers must not.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from piccolod.supervisor import rights
from piccolod.supervisor.known_process import is_stopped

_LOOK_MS: Final = 100
_LOOKS: Final = 20


def spawn(argv: Sequence[str], env: Mapping[str, str], stderr: int, fds: Sequence[int] = ()) -> int:
    """Runs `argv` with stdout and stderr on `stderr` and `fds` as 3, 4, ... Returns its pid. Raises OSError.

    Not while a fork that was asked of the zygote is under way: for a moment we adopt nobody, and it would go to init. A spare
    that the zygote makes for itself in that very moment can still go there: it waits for an order, or ends with the zygote.
    """
    told, tell = os.pipe()
    try:
        rights.adopt_orphans(False)
        try:
            intermediate = os.fork()
            if intermediate == 0:
                _intermediate(argv, env, stderr, fds, tell)
            _wait(intermediate)
        finally:
            rights.adopt_orphans(True)
        os.set_blocking(told, False)
        try:
            return int(os.read(told, 16))
        except (BlockingIOError, ValueError):
            raise OSError(f"{argv[0]} cannot be started") from None
    finally:
        os.close(told)
        os.close(tell)


def _wait(intermediate: int) -> None:
    """For its end, which takes a millisecond. One that is frozen is killed: the supervisor must not wait for it."""
    pidfd = os.pidfd_open(intermediate)
    try:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        for _ in range(_LOOKS):
            if ended.poll(_LOOK_MS) or is_stopped(intermediate):
                break
        os.kill(intermediate, signal.SIGKILL)
        os.waitpid(intermediate, 0)
    finally:
        os.close(pidfd)


def _intermediate(argv: Sequence[str], env: Mapping[str, str], stderr: int, fds: Sequence[int], tell: int) -> NoReturn:
    try:
        pid = os.fork()
        if pid:
            os.write(tell, str(pid).encode())
            os._exit(0)
        signal.set_wakeup_fd(-1)
        os.setsid()
        os.chdir("/")
        # Out of the way first, so that no number is overwritten before it is copied.
        high = [_high(fd) for fd in (os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), stderr, stderr, *fds)]
        for number, fd in enumerate(high):
            os.dup2(fd, number)
        os.closerange(len(high), os.sysconf("SC_OPEN_MAX"))
        for number_ in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number_, signal.SIG_DFL)
        os.execve(argv[0], list(argv), dict(env))  # noqa: S606
    finally:
        os._exit(127)


def _high(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)

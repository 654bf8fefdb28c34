"""Which process is leash `index`: a lock on a file in the table's folder, which ends with its holder.

A record lock (fcntl(2)), for the kernel names its holder: no pid is written down that could be somebody else's by now.
Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK: Final = struct.Struct("hhqqi4x")


def lock_file(table: str | os.PathLike[str], index: int) -> str:
    return f"{os.fspath(table)}/{index}.lock"


def take(table: str | os.PathLike[str], index: int) -> int | None:
    """The descriptor that holds the lock until this process ends; `None` when another leash runs."""
    fd = os.open(lock_file(table, index), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(fd)
        return None
    return fd


def holder(table: str | os.PathLike[str], index: int) -> int | None:
    """The pid of the running leash, frozen or not; `None` when none runs."""
    try:
        fd = os.open(lock_file(table, index), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(fd)
    kind, _, _, _, pid = _FLOCK.unpack(answer)
    return pid if kind != fcntl.F_UNLCK else None


def signal_holder(table: str | os.PathLike[str], index: int, signum: signal.Signals) -> bool:
    """Signals the running leash, and nothing that merely reuses its pid. `False` when none runs."""
    pid = holder(table, index)
    if pid is None:
        return False
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            # It held the lock before the descriptor was opened and still does: the descriptor is the leash's.
            if holder(table, index) == pid:
                signal.pidfd_send_signal(pidfd, signum)
                return True
        finally:
            os.close(pidfd)
    return False

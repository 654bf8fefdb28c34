"""Makes the calling process one that keeps running when the machine is short of everything. Standard library only."""

from __future__ import annotations

import ctypes
import os
import resource
import stat
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Bytes, soft and hard: no core dump fits. Not 0, which the kernel lets pass where `core_pattern` names a program: only 1
# forbids that, too (fs/coredump.c).
NO_CORE_DUMP: Final = (1, 1)
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4
_MADV_POPULATE_READ: Final = 22
_CAP_IPC_LOCK: Final = 1 << 14
_OOM_SCORE: Final = "-900"
_PRIORITY: Final = 1
_NICE: Final = -10


def harden() -> list[str]:
    """Takes what the host permits; returns what it refused, in words for a log."""
    forbid_core_dumps()
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _unblock_log()
    steps = {
        "locked memory": _lock_memory,
        "an OOM score of " + _OOM_SCORE: _lower_oom_score,
        "raised priority": _raise_priority,
    }
    return [name for name, step in steps.items() if not step()]


def forbid_core_dumps() -> None:
    """For this process, and what it starts."""
    with suppress(OSError, ValueError):  # who may not raise it has a limit of 0
        resource.setrlimit(resource.RLIMIT_CORE, NO_CORE_DUMP)


def _lock_memory() -> bool:
    """Every page of a file (code, constants) is read and locked now; memory of our own is locked when it is first used,
    which needs no disk: to lock it before would hold 2 MiB that nobody ever touches (measured).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    # With a limit in force MCL_FUTURE would turn a later allocation into a MemoryError: then only what is there is locked.
    unlimited = _no_limit_holds() or resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    which = _MCL_CURRENT | _MCL_FUTURE if unlimited else _MCL_CURRENT
    if libc.mlockall(which | _MCL_ONFAULT) == 0 and all(_read_whole(libc, *part) for part in _mapped_files()):
        return True
    return bool(libc.mlockall(which) == 0)


def _no_limit_holds() -> bool:
    """CAP_IPC_LOCK: RLIMIT_MEMLOCK, which an unprivileged container cannot raise, does not count."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        effective = next((line.split()[1] for line in status if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) & _CAP_IPC_LOCK)


def _mapped_files() -> list[tuple[int, int]]:
    """(address, bytes) of each mapping of a file."""
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            span, rights, _offset, _device, inode = line.split()[:5]
            if inode != "0" and rights.startswith("r"):
                begin, end = (int(address, 16) for address in span.split("-"))
                found.append((begin, end - begin))
    return found


def _read_whole(libc: ctypes.CDLL, address: int, size: int) -> bool:
    """`False` before Linux 5.14, which does not know how."""
    return bool(libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _MADV_POPULATE_READ) == 0)


def _lower_oom_score() -> bool:
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(_OOM_SCORE)
    except OSError:
        return False
    return True


def _raise_priority() -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_PRIORITY))
    except OSError:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, _NICE)
        except OSError:
            return False
    return True


def _unblock_log() -> None:
    """A pipe or socket as stderr never blocks; anything else, which could wait for a disk, is dropped."""
    with suppress(OSError):
        if stat.S_ISFIFO(mode := os.fstat(2).st_mode) or stat.S_ISSOCK(mode):
            os.set_blocking(2, False)
        else:
            null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, 2)
            os.close(null)

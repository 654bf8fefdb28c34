"""What a process keeps when it becomes a module: as little as its row of the table says.

Runs in the child, before any code of the module. Each right that this host cannot take away is named in the answer, never
passed over in silence.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from piccolod.leadership.hardening import forbid_core_dumps

# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
# linux/capability.h
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAPABILITIES: Final = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
    "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ",
    "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
_LIBC: Final = ctypes.CDLL(None, use_errno=True)  # once, in the zygote: making it costs more than all its calls
_LIBC.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
_NUMBERS: Final = {name: number for number, name in enumerate(_CAPABILITIES)}

# Above this a loop over all descriptors, as some libraries do, takes seconds.
_MOST_FILES: Final = 1 << 20
_PRIORITY: Final = 1
_NICE: Final = -10
_OOM_SCORE: Final = -500


@dataclass(frozen=True, slots=True)
class Rights:
    user: str = "root"
    capabilities: tuple[str, ...] = ()
    raised_priority: bool = False
    cgroup: str = ""  # folder of the cgroup to enter

    def to_wire(self) -> dict[str, Any]:
        return {
            "user": self.user,
            "capabilities": list(self.capabilities),
            "raised_priority": self.raised_priority,
            "cgroup": self.cgroup,
        }

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Rights:
        return cls(wire["user"], tuple(wire["capabilities"]), wire["raised_priority"], wire["cgroup"])


def take(rights: Rights) -> list[str]:
    """Drops everything else, for good. Returns what this host did not allow, in words."""
    missing: list[str] = []
    _limits()
    if rights.cgroup and not _enter(rights.cgroup):
        missing.append(f"the cgroup {rights.cgroup} cannot be entered: its limits are not enforced")
    if rights.raised_priority and not raise_priority():
        missing.append("no raised priority: a busy machine can delay it")
    missing += _drop_privileges(rights)
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1):
        missing.append("no_new_privs cannot be set")
    # After the change of user, which would set it back.
    if _prctl(_PR_SET_DUMPABLE, 0):
        missing.append("its memory can be dumped")
    return missing


def die_with(parent: int) -> bool:
    """SIGKILL for this process, frozen or not, when `parent` ends. False: it has ended already, or is not the parent.

    Again after every change of user or capabilities, which would undo it.
    """
    return _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL)) == 0 and os.getppid() == parent


def wake_with(parent: int) -> bool:
    """SIGCONT for this process when `parent` ends, so that one that was frozen sees the end and can act on it."""
    return _prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT)) == 0 and os.getppid() == parent


def adopt_orphans(yes: bool) -> None:
    """Whether orphaned descendants become children of this process, instead of init's."""
    if _prctl(_PR_SET_CHILD_SUBREAPER, int(yes)):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def raise_descriptor_limit() -> None:
    """The usual soft limit of a shell, 1024, is soon used up: the supervisor keeps the sockets of all modules."""
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def raise_priority() -> bool:
    """Ahead of ordinary processes; children do not inherit it."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(_PRIORITY))
        return True
    try:
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    except OSError:
        return False
    return True


@contextmanager
def ordinary_priority() -> Iterator[None]:
    """Not ahead of others, for the moment."""
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    if policy & ~os.SCHED_RESET_ON_FORK != os.SCHED_RR:
        yield
        return
    os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, policy, param)


def lower_oom_score() -> bool:
    """The kernel looks elsewhere first when memory runs out; children inherit it."""
    try:
        with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
            if int(file.read()) > _OOM_SCORE:
                file.seek(0)
                file.write(str(_OOM_SCORE))
    except OSError:
        return False
    return True


def no_core_dumps() -> None:
    forbid_core_dumps()
    _prctl(_PR_SET_DUMPABLE, 0)


def load_name_service() -> None:
    """In the zygote: the libraries that look up users are loaded once, and not by each module."""
    with suppress(KeyError):
        pwd.getpwnam("piccolo-nobody")


def _limits() -> None:
    forbid_core_dumps()
    raise_descriptor_limit()


def _enter(cgroup: str) -> bool:
    try:
        with open(f"{cgroup}/cgroup.procs", "w", encoding="ascii") as file:
            file.write("0")
    except OSError:
        return False
    return True


def _drop_privileges(rights: Rights) -> list[str]:
    if os.geteuid() != 0:
        same = rights.user == pwd.getpwuid(os.geteuid()).pw_name
        return [] if same else [f"runs as uid {os.geteuid()}, not as {rights.user}: the supervisor is not root"]
    missing = []
    permitted = _permitted()
    if absent := [name for name in rights.capabilities if not permitted >> _NUMBERS[name] & 1]:
        missing.append(f"this host does not grant {', '.join(absent)}")
    keep = sum(1 << _NUMBERS[name] for name in rights.capabilities) & permitted
    if not _drop_bounding(keep):
        missing.append("the capability bounding set cannot be reduced")
    missing += _become(rights.user, keep)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    if not _set_capabilities(keep):
        missing.append("capabilities cannot be dropped: it keeps those of root")
    return missing


def _become(user: str, keep: int) -> list[str]:
    if user == "root":
        return []
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return [f"there is no user {user} on this host: it runs as root without its capabilities"]
    try:
        _prctl(_PR_SET_KEEPCAPS, int(keep != 0))
        os.initgroups(user, entry.pw_gid)
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    except OSError as error:
        return [f"it cannot become {user}: {error.strerror}"]
    os.environ["HOME"] = entry.pw_dir
    return []


def _permitted() -> int:
    data = (ctypes.c_uint32 * 6)()
    if _LIBC.capget(ctypes.byref(_capability_header()), ctypes.byref(data)):
        return 0
    return int(data[1]) | int(data[4]) << 32


def _capability_header() -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)


def _drop_bounding(keep: int) -> bool:
    done = True
    for number in range(64):
        if _prctl(_PR_CAPBSET_READ, number) < 0:  # beyond the last one that this kernel knows
            break
        if not keep >> number & 1:
            done &= _prctl(_PR_CAPBSET_DROP, number) == 0
    return done


def _set_capabilities(keep: int) -> bool:
    low, high = keep & 0xFFFFFFFF, keep >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)  # two sets of {effective, permitted, inheritable}
    return bool(_LIBC.capset(ctypes.byref(_capability_header()), ctypes.byref(data)) == 0)


def _prctl(option: int, value: int) -> int:
    return int(_LIBC.prctl(option, value, 0, 0, 0))

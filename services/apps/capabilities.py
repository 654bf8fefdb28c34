"""Capabilities of Linux by name and number: capabilities(7) of Linux 6.1, linux/capability.h."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

BY_NUMBER: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE",
    "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME",
    "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
ALL: Final = frozenset(BY_NUMBER)

# With one of these an app can take over the host, as a privileged one can.
AS_GOOD_AS_ROOT: Final = frozenset({
    "BPF", "CHECKPOINT_RESTORE", "DAC_READ_SEARCH", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN",
    "PERFMON", "SYS_ADMIN", "SYS_BOOT", "SYS_MODULE", "SYS_PTRACE", "SYS_RAWIO", "SYS_TIME", "SYSLOG",
})  # fmt: skip


def as_good_as_root(capabilities: Iterable[str]) -> bool:
    return any(name.removeprefix("CAP_") in AS_GOOD_AS_ROOT for name in capabilities)


def effective(status: str) -> frozenset[str]:
    """What a process has; `status` is the text of its /proc/<pid>/status."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return frozenset(name for number, name in enumerate(BY_NUMBER) if mask >> number & 1)
    return frozenset()

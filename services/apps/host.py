"""What this host can hold an app to. What it cannot is refused, or shown as a warning that stays."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from services.apps import capabilities
from services.apps.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Host:
    """Defaults are a host that can do everything."""

    memory: bool = True
    cpu: bool = True
    pids: bool = True
    open_files: int = 1_048_576  # the most that a container can be given
    processes: int = 32_768
    capabilities: frozenset[str] = capabilities.ALL


def shortcomings(manifest: Manifest, host: Host) -> Iterator[tuple[str, str]]:
    """(path, what cannot be held to) for each limit that the manifest sets and this host cannot enforce."""
    limits = manifest.resources.limits
    if limits.memory is not None and not host.memory:
        yield "resources.limits.memory", "this host cannot enforce it: no memory controller for cgroups"
    if limits.cpu and not host.cpu:
        yield "resources.limits.cpu", "this host cannot enforce it: no CPU controller for cgroups"
    if not host.pids:
        yield "permissions.resources.max_processes", "this host cannot enforce it: no pids controller for cgroups"
    files = manifest.permissions.resources.max_open_files
    if files is not None and files > host.open_files:
        yield "permissions.resources.max_open_files", f"this host cannot grant more than {host.open_files}"
    for index, name in enumerate(manifest.permissions.capabilities):
        if name.removeprefix("CAP_") in capabilities.ALL - host.capabilities:
            yield f"permissions.capabilities[{index}]", f"this host cannot grant {name}"


def probe(podman_socket: Path, cgroups: Path = Path("/sys/fs/cgroup")) -> Host:
    """Looks at this host, and at podman's service, from which containers have their rights: ours are fewer.

    While podman does not run its rights are taken for complete; it is looked at again when it answers.
    """
    controllers = _controllers(cgroups)
    host = Host(memory="memory" in controllers, cpu="cpu" in controllers, pids="pids" in controllers)
    try:
        pid = _listener(podman_socket)
        granted = capabilities.effective(Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
    except OSError:
        return host
    most = int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii"))
    return replace(
        host,
        open_files=host.open_files if "SYS_RESOURCE" in granted else min(host.open_files, _hard(limits, "Max open files")),
        # podman's service lowers its own limit to the kernel's number of pids (measured: podman 4.3).
        processes=min(most, _hard(limits, "Max processes")),
        capabilities=granted,
    )


def _listener(path: Path) -> int:
    """The process that listens on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(0.2)
        link.connect(str(path))
        pid, _, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)


def _hard(limits: str, name: str) -> int:
    """A hard limit of /proc/<pid>/limits."""
    line = next(line for line in limits.splitlines() if line.startswith(name))
    word = line.removeprefix(name).split()[1]
    return 1 << 31 if word == "unlimited" else int(word)


def _controllers(cgroups: Path) -> frozenset[str]:
    unified = cgroups / "cgroup.controllers"
    if unified.exists():
        return frozenset(unified.read_text(encoding="ascii").split())
    files = {"memory": "memory/memory.limit_in_bytes", "cpu": "cpu/cpu.cfs_quota_us", "pids": "pids/cgroup.procs"}
    return frozenset(name for name, file in files.items() if (cgroups / file).exists())

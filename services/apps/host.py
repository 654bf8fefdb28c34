"""What this host can hold an app to. What it cannot is refused, or shown as a warning that stays."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.apps import capabilities
from services.apps.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Host:
    """Defaults are a host that can do everything."""

    memory: bool = True
    cpu: bool = True
    pids: bool = True
    cores: int = 64
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


def probe(cgroups: Path = Path("/sys/fs/cgroup"), status: Path = Path("/proc/self/status")) -> Host:
    """Looks at this host; a few small files."""
    controllers = _controllers(cgroups)
    granted = capabilities.effective(status.read_text(encoding="ascii"))
    may_raise = "SYS_RESOURCE" in granted
    return Host(
        memory="memory" in controllers,
        cpu="cpu" in controllers,
        pids="pids" in controllers,
        cores=os.cpu_count() or 1,
        open_files=1_048_576 if may_raise else resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        processes=_processes(),
        capabilities=granted,
    )


def _processes() -> int:
    """podman's service lowers its own limit to the kernel's number of pids (measured: podman 4.3)."""
    most = int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii"))
    granted = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    return most if granted == resource.RLIM_INFINITY else min(most, granted)


def _controllers(cgroups: Path) -> frozenset[str]:
    unified = cgroups / "cgroup.controllers"
    if unified.exists():
        return frozenset(unified.read_text(encoding="ascii").split())
    files = {"memory": "memory/memory.limit_in_bytes", "cpu": "cpu/cpu.cfs_quota_us", "pids": "pids/cgroup.procs"}
    # Docker's and systemd's v1 layouts name the same folder cpu, cpu,cpuacct or both.
    return frozenset(name for name, file in files.items() if (cgroups / file).exists())

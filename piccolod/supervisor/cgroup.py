"""A cgroup for each module, where the service manager has delegated ours to us (cgroup v2, `Delegate=yes`)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_MOST_TASKS = 4096


class Cgroups:
    """Folders below our own cgroup. Without delegation `leaf` is empty and nothing is limited."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.limits_memory = folder is not None and "memory" in _words(folder / "cgroup.subtree_control")

    @classmethod
    def of_this_process(cls, mount: Path = _MOUNT) -> Cgroups:
        """Takes over our cgroup when it is ours alone: a service of the host's manager, with nobody else in it."""
        if not (mount / "cgroup.controllers").exists():
            return cls(None)
        with suppress(OSError):
            own = next(line[4:].strip() for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::")
            folder = mount / own.strip("/")
            if own.endswith((".service", ".scope")) and _words(folder / "cgroup.procs") == {str(os.getpid())}:
                return cls._take(folder)
            # After a restart of the supervisor we were put beside the leaves again, or start within one.
        return cls(None)

    @classmethod
    def _take(cls, folder: Path) -> Cgroups:
        # Controllers can be given to leaves only when no process is left in the folder itself.
        home = folder / "supervisor"
        home.mkdir(exist_ok=True)
        (home / "cgroup.procs").write_text(str(os.getpid()))
        for controller in ("memory", "pids", "cpu"):
            with suppress(OSError):
                (folder / "cgroup.subtree_control").write_text(f"+{controller}")
        return cls(folder)

    def leaf(self, name: str, memory_bytes: int) -> str:
        """The folder of the cgroup `name`; empty when there is none."""
        if self._folder is None:
            return ""
        leaf = self._folder / name
        try:
            leaf.mkdir(exist_ok=True)
            if self.limits_memory:
                (leaf / "memory.max").write_text(str(memory_bytes))
            with suppress(OSError):
                (leaf / "pids.max").write_text(str(_MOST_TASKS))
        except OSError:
            return ""
        return str(leaf)


def _words(file: Path) -> set[str]:
    try:
        return set(file.read_text().split())
    except OSError:
        return set()

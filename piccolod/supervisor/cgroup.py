"""A cgroup for each module, where the service manager delegates one (cgroup v2, `Delegate=yes`, `DelegateSubgroup=`)."""

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
        """Takes what is delegated: a service of the host's manager that starts us in a subgroup of its own.

        Without `DelegateSubgroup=` we would have to move ourselves out of the service's own group, and a restart beside
        what we left in the leaves would fail, for no process may be put beside them (cgroups(7), "no internal processes").
        """
        with suppress(OSError, StopIteration):
            lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
            own = mount / next(line[3:] for line in lines if line.startswith("0::")).strip("/")
            alone = _words(own / "cgroup.procs") == {str(os.getpid())} and not _words(own.parent / "cgroup.procs")
            if alone and own.parent.name.endswith(".service"):
                for controller in ("memory", "pids"):
                    with suppress(OSError):
                        (own.parent / "cgroup.subtree_control").write_text(f"+{controller}")
                return cls(own.parent)
        return cls(None)

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

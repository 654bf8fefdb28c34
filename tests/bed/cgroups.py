"""The cgroups of a machine, one in each hierarchy of the host: who belongs to it, all stopped at an instant, removed whole."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.node import until

PREFIX = "piccolo-bed-"
_TRAPS = ("do_freezer_trap", "get_signal")  # kernel/signal.c: the second where the compiler put the first into it
_JOIN = 'for procs in $JOIN; do echo $$ >"$procs"; done; unset JOIN; exec "$@"'


class Cgroups:
    def __init__(self, tag: str, member: str) -> None:
        self._bed = f"{PREFIX}{tag}"
        self._folders = [mount / self._bed / member for mount, _ in hierarchies()]
        self._unified = next(mount / self._bed / member for mount, kind in hierarchies() if kind == "cgroup2")

    def make(self) -> None:
        for folder in self._folders:
            for level in (folder.parent, folder):
                level.mkdir(exist_ok=True)
                for name in ("cpuset.cpus", "cpuset.mems"):  # empty at first, and then nobody may enter (cpuset(7))
                    with suppress(FileNotFoundError):
                        (level / name).write_text((level.parent / name).read_text())

    def join(self, *command: str) -> list[str]:
        """How `command` is run in them."""
        folders = " ".join(f"{folder}/cgroup.procs" for folder in self._folders)
        return ["env", f"JOIN={folders}", "sh", "-c", _JOIN, "join", *command]

    def members(self) -> list[int]:
        """Every process, containers included, by the number that it has here."""
        return [pid for file in self._unified.rglob("cgroup.procs") for pid in _numbers(file)]

    def freeze(self) -> None:
        """All of them stop at their next instruction; `is_frozen` tells when they have."""
        (self._unified / "cgroup.freeze").write_text("1")

    def thaw(self) -> None:
        (self._unified / "cgroup.freeze").write_text("0")

    def is_frozen(self) -> bool:
        """Whether nothing moves. Those that wait for a frozen disk stand still in the kernel, which does not call them frozen."""
        events = (self._unified / "cgroup.events").read_text()
        return "frozen 1" in events or all(_stands_still(pid) for pid in self.members())

    def remove(self) -> None:
        """Only once every process has ended."""
        for folder in self._folders:
            until(partial(remove_tree, folder), f"{folder} empty")
            with suppress(OSError):
                folder.parent.rmdir()


def hierarchies() -> list[tuple[Path, str]]:
    """(mount point, "cgroup" or "cgroup2") of each."""
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [(Path(point), kind) for _, point, kind, *_ in lines if kind in ("cgroup", "cgroup2")]


def remove_tree(folder: Path) -> bool:
    """Whether it is gone. A cgroup is removed by rmdir alone, the innermost first."""
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(path)
    return not folder.exists()


def _stands_still(pid: int) -> bool:
    """Every thread of it, in the freezer's trap or in a wait that no signal ends."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return all(state(thread) in "DX" or (thread / "wchan").read_text() in _TRAPS for thread in threads)
    except OSError:  # it ended meanwhile
        return True


def state(thread: Path) -> str:
    """The letter of proc(5) for a folder of /proc: `D` is a wait that no signal ends, `X` is one that has ended."""
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _numbers(file: Path) -> list[int]:
    try:
        return [int(line) for line in file.read_text().split()]
    except OSError:  # a cgroup that ended meanwhile
        return []

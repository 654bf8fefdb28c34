"""The cgroups of a machine, one in each hierarchy of the host: who belongs to it, all stopped at an instant, removed whole."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.node import until

PREFIX = "piccolo-bed-"
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
        """All of them stand still when this returns (but those that wait for a frozen disk, which stand still anyway)."""
        (self._unified / "cgroup.freeze").write_text("1")

    def thaw(self) -> None:
        (self._unified / "cgroup.freeze").write_text("0")

    def is_frozen(self) -> bool:
        return "frozen 1" in (self._unified / "cgroup.events").read_text()

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


def _numbers(file: Path) -> list[int]:
    try:
        return [int(line) for line in file.read_text().split()]
    except OSError:  # a cgroup that ended meanwhile
        return []

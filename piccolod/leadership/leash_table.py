"""The leash table: one file in `run_dir/leash` for each led container, so that a restarted guard knows everything.

A file is written and synced before the container's first instruction and removed only after a proven exit. It has a line a
field, `name value`: a parser of JSON would cost each leash 0.4 MiB (measured). Standard library only.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress

from piccolod import clock
from piccolod.leadership.grip import Grip, own_cgroup, process_start
from piccolod.named_tuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

# Not Path: pathlib would cost each leash most of a MiB.
Folder = str | os.PathLike[str]

SUFFIX: Final = ".armed"
_CONTAINER_CHARACTERS: Final = 128
_TYPES: Final = {
    "container": str, "resource": str, "token": int, "epoch": int,
    "cgroup": str, "pid": int, "start_ticks": int, "boot_id": str,
}  # fmt: skip
# Linux stamps files with a clock of a few ms: a folder that changed just now may change again under the same stamp.
_RACY_NS: Final = 20_000_000


class Entry(NamedTuple):
    """One led container: under which term it runs, and how to find it and nothing else.

    `cgroup` is the absolute path of its cgroup folder, or empty. `pid` with `start_ticks` is its init, as the host sees it.
    """

    container: str
    resource: str
    token: int
    epoch: int
    cgroup: str
    pid: int
    start_ticks: int
    boot_id: str

    @property
    def file(self) -> str:
        return self.container + SUFFIX


def entry_of(container: str, resource: str, token: int, epoch: int, *, pid: int, cgroup: str | None = None) -> Entry:
    """The entry of a container whose init exists now. Raises ProcessLookupError when it does not.

    The cgroup is found by itself where the container has a cgroup v2 folder of its own.
    """
    start_ticks = process_start(pid)
    found = own_cgroup(pid, container) if cgroup is None else cgroup
    return checked(Entry(container, resource, token, epoch, found, pid, start_ticks, clock.boot_id()))


def checked(entry: Entry) -> Entry:
    """Raises ValueError for an entry that could name the wrong thing, or everything."""
    if not _is_container(entry.container):
        raise ValueError(f"{entry.container!r} is no container id")
    if entry.pid <= 1 or not entry.resource:
        raise ValueError(f"{entry.container}: the entry names no process or no resource")
    if any("\n" in text for text in (entry.resource, entry.cgroup, entry.boot_id)):
        raise ValueError(f"{entry.container}: a line has no end within")
    cgroup = entry.cgroup
    # Killing a root or a mount point of cgroups would kill the host.
    if cgroup and (not os.path.isabs(cgroup) or ".." in cgroup.split("/") or os.path.ismount(cgroup)):
        raise ValueError(f"{entry.container}: {cgroup!r} is no container's cgroup")
    return entry


def write(folder: Folder, entry: Entry) -> None:
    """Puts the entry into the table; synced, file and folder, when this returns."""
    content = "".join(f"{name} {value}\n" for name, value in checked(entry)._asdict().items()).encode()
    draft = os.path.join(folder, f".{entry.container}.new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, content) != len(content):
            raise OSError(errno.ENOSPC, "the leash table is full", draft)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(draft, os.path.join(folder, entry.file))
    _sync(folder)


def remove(folder: Folder, entry: Entry) -> None:
    """Takes the entry out. Only after `proven_dead`, which this checks once more: raises RuntimeError if it is not."""
    if not proven_dead(entry):
        raise RuntimeError(f"{entry.container} is not proven dead")
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, entry.file))
    _sync(folder)


def read_entry(file: Folder) -> Entry | None:
    """The entry in a file; `None` when there is none or it is unreadable."""
    try:
        with open(file, encoding="utf-8", newline="\n") as content:
            *lines, rest = content.read().split("\n")
        fields = [line.split(" ", 1) for line in lines]
        entry = checked(Entry(**{name: _TYPES[name](value) for name, value in fields}))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return entry if not rest and entry.file == os.path.basename(file) else None


def read(folder: Folder) -> dict[str, Entry]:
    """The whole table by file name. What is unreadable is left out; it cannot come from `write`."""
    try:
        names = [name for name in os.listdir(folder) if name.endswith(SUFFIX)]
    except FileNotFoundError:
        return {}
    entries = ((name, read_entry(os.path.join(folder, name))) for name in names)
    return {name: entry for name, entry in entries if entry is not None}


class TableReader:
    """The table for who looks at it many times a second: reads the folder again only when it has changed."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._stamp_ns = -1
        self._entries: dict[str, Entry] = {}

    def entries(self) -> dict[str, Entry]:
        try:
            stamp_ns = os.stat(self._folder).st_mtime_ns
        except FileNotFoundError:
            return {}
        if stamp_ns != self._stamp_ns:
            self._entries = read(self._folder)
            self._stamp_ns = stamp_ns if time.time_ns() - stamp_ns > _RACY_NS else -1
        return self._entries


def _is_container(name: str) -> bool:
    """A letter or a digit, then also `_.-`: no path, nothing hidden."""
    plain = name.replace("_", "0").replace(".", "0").replace("-", "0")
    return name[:1].isalnum() and plain.isascii() and plain.isalnum() and len(name) <= _CONTAINER_CHARACTERS


def grip(entry: Entry) -> Grip:
    return Grip(entry.pid, entry.start_ticks, entry.cgroup, entry.boot_id)


def replaces(entry: Entry, earlier: Entry) -> bool:
    """Whether the entry may take the earlier one's place: that one's init is dead, and what is left of it is in our cgroup."""
    return proven_dead(earlier._replace(cgroup="") if earlier.cgroup == entry.cgroup else earlier)


def kill(entry: Entry) -> None:
    """SIGKILLs the whole container through the kernel. Does nothing to what merely reuses its pid."""
    with grip(entry) as held:
        held.kill()


def proven_dead(entry: Entry) -> bool:
    """Nothing of the container lives: its init has exited, its cgroup is empty. Doubt is `False`."""
    with grip(entry) as held:
        return held.proven_dead()


def alive(entries: Iterable[Entry], resource: str = "") -> list[Entry]:
    """Those that are not proven dead; with `resource`, of that one alone."""
    return [entry for entry in entries if resource in ("", entry.resource) and not proven_dead(entry)]


def _sync(folder: Folder) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

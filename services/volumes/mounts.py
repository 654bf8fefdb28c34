"""Mounts: read from the kernel's list, never by touching what is mounted, which may not answer."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from piccolod.errors import Busy, Failed

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_DETACH: Final = 2  # sys/mount.h
_NOFOLLOW: Final = 8


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo. `device` (major:minor) is the same for every mount of one file system."""

    device: str
    point: str
    kind: str
    source: str


def parse(text: bytes) -> list[Mount]:
    """The mounts of a /proc/<pid>/mountinfo, in order: the last one on a point covers the others."""
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if len(fields) >= 6 and len(rest) >= 2:
            found.append(Mount(_plain(fields[2]), _plain(fields[4]), _plain(rest[0]), _plain(rest[1])))
    return found


def _plain(field: bytes) -> str:
    """The kernel writes space, tab, newline and backslash as three octal digits."""
    if b"\\" in field:
        for byte in (b" ", b"\t", b"\n", b"\\"):
            field = field.replace(b"\\%03o" % byte[0], byte)
    return os.fsdecode(field)


def here() -> list[Mount]:
    return parse(Path("/proc/self/mountinfo").read_bytes())


def at(point: Path, mounts: list[Mount] | None = None) -> Mount | None:
    """The mount that one sees at `point`, or None."""
    found = [mount for mount in (here() if mounts is None else mounts) if mount.point == str(point)]
    return found[-1] if found else None


def other_users(device: str, point: Path) -> list[str]:
    """Who else has the file system mounted: other places here, and other mount namespaces, which are containers."""
    users = [f"the mount {mount.point}" for mount in here() if mount.device == device and mount.point != str(point)]
    seen = {os.readlink("/proc/self/ns/mnt")}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            namespace = os.readlink(folder / "ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            mounts = parse((folder / "mountinfo").read_bytes())
            name = (folder / "comm").read_text().strip()
        except OSError:  # it ended while we looked
            continue
        if any(mount.device == device for mount in mounts):
            users.append(f"{name} (pid {folder.name})")
    return users


def open_files(point: Path) -> list[str]:
    """Processes that have something below `point` open or work there, by /proc alone."""
    users = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and _is_below(folder, str(point)):
            try:
                users.append(f"{(folder / 'comm').read_text().strip()} (pid {folder.name})")
            except OSError:
                continue
    return users


def _is_below(process_folder: Path, point: str) -> bool:
    links = [process_folder / "cwd", process_folder / "root"]
    try:
        links += (process_folder / "fd").iterdir()
    except OSError:
        return False
    for link in links:
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target == point or target.startswith(point + "/"):
            return True
    return False


def unmount(point: Path) -> None:
    """Takes the mount of plain text away. Raises Busy with the names of its users; nothing mounted is fine.

    By a system call of this process, not by a program: one that outlives a killed caller would hit the next mount here.
    """
    while at(point) is not None:
        number = _umount2(point, _NOFOLLOW)
        if number == errno.EBUSY:
            users = open_files(point) or ["a process that cannot be named"]
            raise Busy(f"{point} is in use by {', '.join(users[:5])}", hint="stop what uses it, then try again")
        if number and at(point) is not None:
            raise Failed(f"{point} cannot be unmounted: {os.strerror(number)}")


def detach_dead(point: Path) -> None:
    """Takes a mount away whose server is dead: nothing can be written through it any more, so waiting serves nobody."""
    while at(point) is not None:
        number = _umount2(point, _NOFOLLOW | _DETACH)
        if number and at(point) is not None:
            raise Failed(f"{point} cannot be unmounted: {os.strerror(number)}")


def _umount2(point: Path, flags: int) -> int:
    """0 or the error number."""
    return ctypes.get_errno() if _LIBC.umount2(os.fsencode(point), flags) else 0


def abort(point: Path) -> None:
    """Breaks the connection of a FUSE mount whose server hangs in itself, where the host shows connections (fusectl).

    A server that waits in the kernel for its own mount cannot be killed before.
    """
    mounted = at(point)
    if mounted is None or not mounted.kind.startswith("fuse"):
        return
    with suppress(OSError):
        (Path("/sys/fs/fuse/connections") / mounted.device.partition(":")[2] / "abort").write_text("1")

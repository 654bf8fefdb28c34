"""Which program holds a port: found in /proc, a little in each turn of the loop, since there may be thousands of processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from piccolod import clock
from piccolod.supervisor.loop import Loop

_SLICE_S: Final = 0.005
_REMEMBER_S: Final = 10.0
_MOST: Final = 64
_FILES: Final = {"tcp": ("tcp", "tcp6"), "udp": ("udp", "udp6")}
_LISTEN: Final = "0A"


class Holders:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._known: dict[tuple[str, int], tuple[float, str]] = {}
        self._searches: dict[tuple[str, int], list[Callable[[str], None]]] = {}

    def find(self, proto: str, port: int, found: Callable[[str], None]) -> None:
        """Calls `found` with `nginx (pid 71)`, or with nothing when it cannot be told."""
        key = proto, port
        seen_at, holder = self._known.get(key, (float("-inf"), ""))
        if clock.now() - seen_at < _REMEMBER_S or (key not in self._searches and len(self._searches) >= _MOST):
            found(holder)
        elif key in self._searches:
            if len(self._searches[key]) < _MOST:
                self._searches[key].append(found)
            else:
                found("")
        else:
            self._searches[key] = [found]
            self._go_on(key, search(proto, port))

    def _go_on(self, key: tuple[str, int], steps: Iterator[str | None]) -> None:
        until = clock.now() + _SLICE_S
        holder: str | None = None
        while holder is None and clock.now() < until:
            holder = next(steps, "")
        if holder is None:
            self._loop.after(0.0, lambda: self._go_on(key, steps))
            return
        while len(self._known) >= _MOST:
            del self._known[next(iter(self._known))]
        self._known[key] = clock.now(), holder
        for found in self._searches.pop(key):
            found(holder)


def search(proto: str, port: int) -> Iterator[str | None]:
    """None for each process that is not it; then, if it is found, its name."""
    inodes = {f"socket:[{inode}]" for name in _FILES[proto] for inode in _inodes(Path("/proc/net") / name, proto, port)}
    for pid in os.listdir("/proc") if inodes else ():
        if pid.isdigit():
            yield _name(pid) if _has_one(pid, inodes) else None


def _has_one(pid: str, inodes: set[str]) -> bool:
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}") in inodes:
                    return True
    return False


def _name(pid: str) -> str:
    with suppress(OSError):
        return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (pid {pid})"
    return f"pid {pid}"


def _inodes(table: Path, proto: str, port: int) -> list[str]:
    try:
        rows = [line.split() for line in table.read_text(encoding="ascii").splitlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows if int(row[1].rpartition(":")[2], 16) == port and (proto == "udp" or row[3] == _LISTEN)]

"""The two folders of a node: made with the right owners, and locked for the life of one supervisor."""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from piccolod import clock
from piccolod.errors import Busy, Failed
from piccolod.leadership import page
from piccolod.paths import Paths

GROUP: Final = "piccolo"
_TICK: Final = struct.Struct("<d")
_TICK_AT: Final = 64
_LOCK_WAIT_S: Final = 1.0


class RunDir:
    """Holds the lock while it lives."""

    def __init__(self, paths: Paths) -> None:
        """Raises Busy beside another supervisor, naming it; Failed when the folders cannot be made."""
        self._paths = paths
        try:
            _make(paths.state, 0o711)
            _make(paths.run, 0o710, group_id())
            self._fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise Failed(f"cannot make the folders of this node: {error}", hint="run as root, or choose others") from error
        self._lock()

    def prepare(self, owners: Mapping[Path, str]) -> None:
        """Everything that must be there before a module starts. `owners`: folders that belong to a user of their own."""
        paths = self._paths
        _make(paths.bus, 0o710, group_id())
        _make(paths.leash, 0o700)
        _make(paths.log, 0o700)
        for folder, user in owners.items():
            _make(folder, 0o700)
            _give(folder, user)
        page.create(paths.page)

    def tick(self) -> None:
        """Shows that the supervisor acts: a node that cannot act must not lead."""
        os.pwrite(self._fd, _TICK.pack(clock.now()), _TICK_AT)

    def close(self) -> None:
        os.close(self._fd)

    def _lock(self) -> None:
        give_up_at = clock.now() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if clock.now() < give_up_at:  # one that was killed a moment ago, or the hook of the service manager
                    time.sleep(0.02)
                    continue
                holder = os.pread(self._fd, 16, 0).rstrip(b"\0 \n").decode(errors="replace")
                os.close(self._fd)
                raise Busy(
                    f"another piccolod (pid {holder or 'unknown'}) runs on {self._paths.run}",
                    hint="stop it, or choose other folders: node.run_dir, node.state_dir",
                ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        self.tick()


def last_tick(paths: Paths) -> float:
    """When the supervisor last showed that it acts, on `clock.now`; 0 if it never did."""
    try:
        with open(paths.lock, "rb") as file:
            file.seek(_TICK_AT)
            return float(_TICK.unpack(file.read(_TICK.size))[0])
    except (OSError, struct.error):
        return 0.0


def group_id() -> int:
    """The group that may use the bus; -1 when this host does not have it."""
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return -1


def _make(folder: Path, mode: int, gid: int = -1) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        os.chmod(folder, mode)
    if gid >= 0:
        os.chown(folder, -1, gid)


def _give(folder: Path, user: str) -> None:
    """To `user`, or to root where the host has no such user; what is in it goes along when the owner changes."""
    try:
        entry = pwd.getpwnam(user)
        uid, gid = entry.pw_uid, entry.pw_gid
    except KeyError:
        uid, gid = 0, 0
    if os.geteuid() != 0 or folder.stat().st_uid == uid:
        return
    for path in (*folder.rglob("*"), folder):
        with suppress(FileNotFoundError):
            os.chown(path, uid, gid, follow_symlinks=False)

"""The two folders of a node: made, given the right owners at each start, and locked for the life of one supervisor."""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import stat
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from piccolod import clock
from piccolod.errors import Busy, Failed
from piccolod.leadership.page_keeper import PageKeeper
from piccolod.paths import Paths

GROUP: Final = "piccolo"
_TICK: Final = struct.Struct("<d")
_TICK_AT: Final = 64
_UNFINISHED: Final = 0o700
_LOCK_WAIT_S: Final = 1.0


class RunDir:
    """Holds the lock while it lives."""

    def __init__(self, paths: Paths) -> None:
        """Raises Busy beside another supervisor, naming it; Failed when the folders cannot be made."""
        self._paths = paths
        try:
            # Theirs are only set when they are made: a person may have chosen a folder that was there.
            if _is_unfinished(paths.state):
                _keep(paths.state, 0o711)
            if _is_unfinished(paths.run):
                _keep(paths.run, 0o710, group_id())
            self._fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise Failed(f"cannot make the folders of this node: {error}", hint="run as root, or choose others") from error
        self._lock()

    def prepare(self, owners: Mapping[Path, str]) -> PageKeeper:
        """The folders and the page that must be there before a module starts. `owners`: folders with a user of their own.

        Raises Failed when something else is in the place of one.
        """
        paths = self._paths
        try:
            _keep(paths.bus, 0o710, group_id())
            _keep(paths.leash, 0o700)
            _keep(paths.log, 0o700)
            for folder, user in owners.items():
                _keep(folder, 0o700, user=user)
            return PageKeeper(paths.page)
        except OSError as error:
            raise Failed(f"cannot prepare a folder of this node: {error}", hint="move away what is in its place") from error

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


def _keep(folder: Path, mode: int, gid: int = -1, user: str = "root") -> None:
    """Makes the folder, or takes the one that is there and gives it this mode and owner. A link in its place is an error.

    Where the host has no such user it is root's. What is in it goes along when the owner changes.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=_UNFINISHED, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.geteuid() == 0:
            uid, own_gid = _ids(user)
            if os.fstat(fd).st_uid != uid:
                _give_contents(fd, uid, own_gid)
            os.fchown(fd, uid, own_gid if gid < 0 else gid)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _is_unfinished(folder: Path) -> bool:
    """Not there, or as who died between making it and giving it its mode left it: root's, closed to all others, empty."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return True
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or stat.S_IMODE(found.st_mode) != _UNFINISHED:
        return False
    return not any(folder.iterdir())


def _ids(user: str) -> tuple[int, int]:
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return 0, 0
    return entry.pw_uid, entry.pw_gid


def _give_contents(folder: int, uid: int, gid: int) -> None:
    """By descriptors: no link that somebody puts there meanwhile leads out of the folder."""
    for _, folders, files, fd in os.fwalk(".", dir_fd=folder):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):
                os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)

"""What decides which timing profile holds on this node: how fast its disk syncs, and how fast a killed process is gone."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Final

from piccolod import clock
from piccolod.errors import Failed
from piccolod.leadership.timing import Choice, Measured, choose, founded

_SYNCS: Final = 100  # the slowest of them stands for the 99th percentile
_SYNC_BYTES: Final = 4096
_KILLS: Final = 5
_GONE_S: Final = 5.0


# What an etcd elects with that was told nothing else; it does not say what it was told.
_OWNERS_ELECTION_S: Final = 1.0


def choice(profile: str, folder: Path, commit_s: float = 0.0) -> Choice:
    """Blocking: some hundred syncs in `folder`, or, for an etcd elsewhere, what a commit takes there.

    Raises Invalid when the profile, or with `auto` every one, does not hold.
    """
    if commit_s:
        measured = Measured(stop_s=stop_s(), fsync_s=commit_s, rtt_s=0.0, election_s=_OWNERS_ELECTION_S)
    else:
        measured = Measured(stop_s=stop_s(), fsync_s=fsync_s(folder), rtt_s=0.0)
    if profile == "auto":
        return choose(measured)
    return Choice(founded(profile, measured.stop_s), f"{profile}, as it was asked for")


def fsync_s(folder: Path) -> float:
    """The slowest of a hundred. Raises OSError."""
    file = folder / "fsync-probe"
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        took = []
        for number in range(_SYNCS):
            os.pwrite(fd, os.urandom(_SYNC_BYTES), number * _SYNC_BYTES)
            began_at = clock.now()
            os.fdatasync(fd)
            took.append(clock.now() - began_at)
        return max(took)
    finally:
        os.close(fd)
        file.unlink(missing_ok=True)


def stop_s() -> float:
    """From SIGKILL until the kernel says that the process is gone; the slowest of a few."""
    return max(_kill_one() for _ in range(_KILLS))


def _kill_one() -> float:
    with subprocess.Popen(["/bin/sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as dummy:
        fd = os.pidfd_open(dummy.pid)
        try:
            began_at = clock.now()
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            if not select.select([fd], [], [], _GONE_S)[0]:
                raise Failed(
                    f"a killed process is still there after {_GONE_S:g} s", hint="this machine cannot lead in a cluster"
                )
            return clock.now() - began_at
        finally:
            os.close(fd)

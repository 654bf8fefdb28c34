"""What decides which timing profile holds on this node: how fast it ends a container, syncs its disk and reaches the others.

`cluster init` has nobody to reach yet and chooses by the first two. Each node that joins measures all three, or beside an
etcd that an owner keeps the first alone, and is told when the profile of the cluster does not hold there.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import statistics
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from piccolod import clock
from piccolod.errors import Failed, PiccoloError
from piccolod.leadership.timing import Choice, Measured, Timing, choose, doubled, founded, unfit
from piccolod.module import Module
from piccolod.protocol.apps import MeasureHardStop

_SYNCS: Final = 100  # the slowest of them stands for the 99th percentile
_SYNC_BYTES: Final = 4096
_KILLS: Final = 5
_GONE_S: Final = 5.0
_CONTAINER_S: Final = 15.0  # podman makes, starts and removes a few, within a second or two
_ROUND_TRIPS: Final = 5
_REACHED_S: Final = 1.0


# What an etcd elects with that was told nothing else; it does not say what it was told.
_OWNERS_ELECTION_S: Final = 1.0


class Stop(NamedTuple):
    """F, and of what."""

    stop_s: float
    what: str


async def hard_stop(module: Module) -> Stop:
    """Of a container of podman; of a plain process, and said so, where there is none."""
    try:
        found = await module.call(MeasureHardStop(), timeout_s=_CONTAINER_S)
    except PiccoloError as error:
        module.log.warning("measures the end of a process instead of a container's", reason=error.detail)
        return Stop(await asyncio.to_thread(stop_s), f"of a plain process, for no container could be ended: {error.detail}")
    return Stop(found.stop_s, "of a container")


def choice(profile: str, folder: Path, stop: Stop, commit_s: float = 0.0) -> Choice:
    """Blocking: some hundred syncs in `folder`; none with `commit_s`, what a commit takes in an etcd elsewhere.

    Raises Invalid when the profile, or with `auto` every one, does not hold.
    """
    if profile != "auto":
        return Choice(founded(profile, stop.stop_s), f"{profile}, as it was asked for; F {stop.what}")
    if commit_s:
        chosen = choose(Measured(stop_s=stop.stop_s, fsync_s=commit_s, rtt_s=0.0, election_s=_OWNERS_ELECTION_S))
        return Choice(chosen.timing, f"{chosen.why}; F {stop.what}, and a commit in the etcd of its owner for the fsync")
    chosen = choose(Measured(stop_s=stop.stop_s, fsync_s=fsync_s(folder), rtt_s=0.0))
    return Choice(chosen.timing, f"{chosen.why}; F {stop.what}, and no other node to measure a round trip to yet")


def shortfalls(timing: Timing, stop: Stop, folder: Path | None, places: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    """What of a cluster's timing does not hold here, measured and doubled, each with its numbers. Blocking.

    `folder`: where etcd syncs; None: not on this node.
    """
    sync_s = fsync_s(folder) if folder is not None else 0.0
    return unfit(timing, doubled(Measured(stop_s=stop.stop_s, fsync_s=sync_s, rtt_s=rtt_s(places))))


def rtt_s(places: Iterable[tuple[str, int]]) -> float:
    """To the farthest of those that answer: the median of a few handshakes of TCP. 0 when none does."""
    return max((_round_trip_s(host, port) for host, port in places), default=0.0)


def _round_trip_s(host: str, port: int) -> float:
    took = []
    with suppress(OSError):
        for _ in range(_ROUND_TRIPS):
            began_at = clock.now()
            with socket.create_connection((host, port), timeout=_REACHED_S):
                took.append(clock.now() - began_at)
    return statistics.median(took) if took else 0.0


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

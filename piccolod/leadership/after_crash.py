"""`piccolod --after-crash`: what the service manager runs once the supervisor has ended, for whatever reason.

A node alone leads for ever and nobody waits for its terms: its containers run on and the next start adopts them. A member's
terms run out by themselves, unless the next start adopts them first. The page, the table and the containers are left as they
are.
"""

from __future__ import annotations

import fcntl
import os

from piccolod import cluster_mode
from piccolod.errors import Busy
from piccolod.leadership import leash_table
from piccolod.paths import Paths


def after_crash(paths: Paths) -> str:
    """What was found and done, as a sentence. Raises Busy beside a live supervisor: it has adopted everything already.

    No supervisor can start before this ends: it holds the lock of the run directory meanwhile.
    """
    try:
        lock = os.open(paths.lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return "nothing to do: piccolod has not run since this machine started"
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _found(paths)
    except BlockingIOError:
        raise Busy(
            f"a supervisor runs on {paths.run}", hint="--after-crash is for the service manager, after a crash"
        ) from None
    finally:
        os.close(lock)


def _found(paths: Paths) -> str:
    alive = sum(not leash_table.proven_dead(entry) for entry in leash_table.read(paths.leash).values())
    if cluster_mode.load(paths.cluster) is not None:
        return f"nothing is released: the next start adopts this node's terms and {alive} led container(s), or they run out"
    return f"nothing to do: this node is alone; {alive} led container(s) run on, the next start adopts them"

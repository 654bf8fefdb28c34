"""Who takes what over: one assignment of all apps that a lost node led, the same on every node that sees the same.

Pure. A wrong or missing `Standing` costs time, never safety: a claim compares what etcd holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

# The next one in the row waits this long, and as long as those before it need to claim what is theirs: a batch of that many
# takes some 40 ms on a busy machine. Where three nodes shared two processors, and one of them began to start containers, 0.1 s
# was not always enough: it took all, in 2 of some 30 losses of 6 apps.
NEXT_S: Final = 0.3
BATCH: Final = 40
BATCH_S: Final = 0.04


class Standing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a node stands to an app. `reason`: why it may not lead it; empty: it may.

    `failures`: of the app there, lately. `prefer`: the nodes that its manifest names, the best one first.
    `at_home`: only who led it last may lead it again, for its data is there alone. `state`: what it does there, for people.
    `verdict`: `promote` or `give_up`, on the update that is the app's `generation`; only the kernel's leader can write it down.
    """

    reason: str = ""
    failures: int = 0
    prefer: tuple[str, ...] = ()
    at_home: bool = False
    state: str = ""
    verdict: str = ""
    generation: int = 0


def ranked(
    apps: Iterable[str],
    standings: Mapping[str, Mapping[str, Standing]],
    load: Mapping[str, int],
    *,
    home: str = "",
    first: str = "",
) -> dict[str, tuple[str, ...]]:
    """For each app the nodes that may lead it, the best one first.

    `standings`: by node and app. `load`: how many apps each node leads now. `home`: who led them last and may do so again,
    empty where there is none. `first`: goes before others that are as good.
    """
    loads = dict(load)
    found: dict[str, tuple[str, ...]] = {}
    for app in sorted(apps):
        able = [(node, each[app]) for node, each in standings.items() if app in each and not each[app].reason]
        row = sorted(
            (each.failures, liking(each, node), node != home, loads.get(node, 0), node != first, _chance(app, node), node)
            for node, each in able
        )
        found[app] = tuple(each[-1] for each in row)
        if row:
            loads[row[0][-1]] = loads.get(row[0][-1], 0) + 1
    return found


def liking(standing: Standing, node: str) -> int:
    """How many nodes the app's manifest likes better; those that it does not name are as good as each other."""
    return standing.prefer.index(node) if node in standing.prefer else len(standing.prefer)


def delay_s(row: Collection[str], node: str, together: int) -> float:
    """How long after it was seen that nobody leads an app the node claims it. `together`: how many apps were lost at once."""
    place = list(row).index(node) if node in row else len(row)
    return place * (NEXT_S + together // BATCH * BATCH_S)


def bound(app: str, standings: Mapping[str, Mapping[str, Standing]]) -> bool:
    """Whether anybody says that the app's data is at its last leader alone."""
    return any(each[app].at_home for each in standings.values() if app in each)


def _chance(app: str, node: str) -> bytes:
    return hashlib.blake2b(f"{app}\0{node}".encode(), digest_size=8).digest()

"""Whether a cluster may be begun anew from this member, and what that loses: sentences for a person. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from piccolod.errors import Busy, Conflict, Locked
from piccolod.leadership.keys import EpochRecord
from piccolod.protocol.cluster import KnownMember
from piccolod.protocol.recovery import Heard, LogEnd, Standing, Store, StoreView
from services.consensus.cluster_records import WITNESS

_ANSWERS = "etcd answers with its quorum, and is the one that was known"


def check(node: str, own: Standing, members: Mapping[str, KnownMember], heard: Iterable[Heard]) -> LogEnd:
    """The log to begin anew with. Raises Conflict, Busy, Locked with what speaks against it.

    The longest chain wins, whatever the person thinks: a member that has more has writes that were acknowledged.
    """
    if (known := members.get(node)) is not None and known.role == WITNESS:
        raise Conflict("a witness has no store", hint="recover on a member that has one")
    check_gone(node, own.view.store)
    if not members:
        raise Conflict(
            "members.json of this node names nobody: it is not known whom to ask, nor who would be lost",
            hint="put the `cluster/members.json` of another member, or of a backup, into state_dir here",
        )
    others = [each.standing for each in heard if each.standing is not None]
    for other in others:
        if other.view.store is Store.ANSWERS:
            raise Conflict(
                f"{other.node} says that {_ANSWERS}: nothing is to be recovered",
                hint="this node is cut off from it, or is out: then `piccoloctl cluster leave --force` and join it anew",
            )
        check_known(other.node, other.view.store)
    if own.end is None:
        raise Conflict(f"the log of this node cannot be vouched for: {own.problem}", hint="see `piccoloctl store check`")
    if own.end.locked:
        raise Locked("the store is locked, and its log is proven by its keys alone", hint="`piccoloctl unlock`")
    longest = max(others, key=_rev, default=None)
    if longest is not None and _rev(longest) > own.end.rev:
        raise Conflict(
            f"{longest.node} has the log up to rev {_rev(longest)}, and this node up to {own.end.rev}",
            hint=f"run it on {longest.node}; a machine that is out of order has to be off",
        )
    return own.end


def check_gone(node: str, store: Store) -> None:
    """Raises Conflict while this node's etcd answers, Busy while that is not known."""
    if store is Store.ANSWERS:
        raise Conflict(f"{_ANSWERS}: nothing is to be recovered", hint="`piccoloctl cluster list` shows the members")
    check_known(node, store)


def check_known(node: str, store: Store) -> None:
    """Raises Busy for a member that cannot say now what becomes of it."""
    if store is Store.RECOVERING:
        raise Busy(f"{node} is being recovered", hint="see what came of it there, and try again then")
    if store is Store.UNKNOWN:
        raise Busy(f"{node} has just started, and does not know yet whether etcd answers", hint="try again in a moment")


def lost(
    node: str,
    end: LogEnd,
    view: StoreView,
    members: Mapping[str, KnownMember],
    heard: Sequence[Heard],
    homes: Mapping[str, EpochRecord],
) -> list[str]:
    """`end`: once everything is taken that the own etcd has, of which `view` tells. `members`: as they were known last.

    `homes`: what was led, and where, as far as that is known.
    """
    found = _left_in_etcd(end, view)
    only = "" if found else " that only others had"
    former = sorted(members.keys() - {node})
    if node not in members:
        found.append(f"everything since {node} was taken out of the cluster")
    spoke = {each.node: each.standing for each in heard if each.standing is not None and each.standing.end is not None}
    silences = {each.node: _silence(each) for each in heard}
    silent = [name for name in former if name not in spoke]
    if silent:
        said = "; ".join(f"{name}: {why}" if (why := silences.get(name)) else f"{name} has no store" for name in silent)
        found.append(f"writes after rev {end.rev}{only}, for not all could be asked ({said})")
    for name, other in sorted(spoke.items()):
        assert other.end is not None
        if other.view.unread:
            found.append(f"what the etcd of {name} has after rev {end.rev}: it does not answer there")
        if other.end.rev == end.rev and other.end.digest != end.digest:
            found.append(f"what {name} has instead of this node's rev {end.rev} and perhaps of others: it is kept aside there")
    away: dict[str, list[str]] = {}
    for resource, record in sorted(homes.items()):
        if resource.startswith("app:") and record.node not in ("", node):
            away.setdefault(record.node, []).append(resource.removeprefix("app:"))
    found += [f"the data of {', '.join(apps)}: it is on {name}, and they begin here without it" for name, apps in away.items()]
    if former:
        found.append(f"the membership of {', '.join(former)}: each leaves (`cluster leave --force`) and joins anew")
    found.append("the history of who led what")
    return found


def _left_in_etcd(end: LogEnd, view: StoreView) -> list[str]:
    """What this node's own etcd has, or may have, and this node has not."""
    if view.unread:
        return [
            f"what this node's own etcd has after rev {end.rev}: it could not be read",
            "the epochs of apps, and where they were at home, as far as that etcd alone knows them",
        ]
    if view.log_rev > end.rev:
        return [f"what this node's own etcd has from rev {end.rev + 1} to {view.log_rev}: it does not prove itself to follow"]
    return []


def _rev(standing: Standing) -> int:
    """What it has, or could take from its own etcd by being the one."""
    return max(standing.end.rev if standing.end is not None else 0, standing.view.log_rev)


def _silence(heard: Heard) -> str:
    return heard.standing.problem if heard.standing is not None else heard.silence

"""When this node claims which app: at once where it is the one whom the assignment names, later where others come first.

The core claims what is wanted and vacant after the delay that is told it here, so the delays are known before anybody is lost:
for what another node leads, as if that one were gone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from piccolod.leadership.page import CAPACITY
from piccolod.leadership.placement import Standing, bound, delay_s, liking, ranked
from piccolod.leadership.resources import RESOURCE_KERNEL, app_of, resource_for_app
from piccolod.leadership.state import Leadership
from piccolod.leadership.view import View
from piccolod.protocol.consensus import Candidate
from services.consensus import standing
from services.consensus.facts import Facts

# What was never led begins beside the kernel, where it was just installed, and what was stopped and is started where it was:
# so long is waited for that node's word, which has yet to come.
UNHEARD_S: Final = 2.0

Standings = Mapping[str, Mapping[str, Standing]]


class Group(NamedTuple):
    """Apps that are lost together, or were given up by one node. `owner` empty: nobody's. `lives`: it leads them now."""

    owner: str
    lives: bool


def delays(state: Leadership, facts: Facts, own: Mapping[str, Standing]) -> dict[str, float]:
    """For each app that this node may lead and does not, how long after its loss it claims it. Pure."""
    me = state.config.node
    if len(state.terms) >= CAPACITY or me in facts.drained:
        return {}
    standings = standings_of(state, facts, own)
    groups: dict[Group, list[str]] = defaultdict(list)
    for app in own:
        if not own[app].reason and resource_for_app(app) not in state.terms:
            groups[_group(state.view, facts, app)].append(app)
    found: dict[str, float] = {}
    load = loads(state.view)
    first = standing.holder(state, RESOURCE_KERNEL)
    for group, apps in groups.items():
        others = standings.keys() - facts.drained.keys() - ({group.owner} if group.lives else set())
        able = {node: standings[node] for node in others}
        home = "" if group.lives else group.owner
        rows = ranked(apps, able, load, home=home, first="" if group.owner else first)
        for app, row in rows.items():
            if _bound_to(state, facts, standings, app) in ("", me):
                waited_for = _waited_for(facts, group, own[app], me, first)
                unheard = any(node in state.view.sessions and app not in standings.get(node, {}) for node in waited_for)
                found[app] = delay_s(row, me, len(apps)) + unheard * UNHEARD_S
    return found


def standings_of(state: Leadership, facts: Facts, own: Mapping[str, Standing]) -> Standings:
    """How each node that is in session stands to each app; of this one without the way over etcd."""
    found: dict[str, Mapping[str, Standing]] = {
        name: candidate.apps for name, candidate in facts.candidates.items() if name in state.view.sessions
    }
    found[state.config.node] = own
    return found


def without_drained(facts: Facts, standings: Standings) -> Standings:
    """The same, of whom a drained node is none that could lead."""

    def said(each: Standing) -> Standing:
        return each if each.reason else msgspec.structs.replace(each, reason=standing.DRAINED)

    return {
        node: {app: said(each) for app, each in apps.items()} if node in facts.drained else apps
        for node, apps in standings.items()
    }


def home_of(state: Leadership, facts: Facts, standings: Standings, app: str) -> str:
    """The one node that may lead the app, for its data is there; empty where any may."""
    owner = _group(state.view, facts, app).owner
    return owner if owner and bound(app, standings) else ""


def _waited_for(facts: Facts, group: Group, own: Standing, me: str, first: str) -> tuple[str, ...]:
    """Whose word comes before a claim: of what was given up who had it; of what begins those whom its manifest likes better,
    and `first` where it does not name this node. After a loss nobody's."""
    if group.owner:
        return () if group.lives else (group.owner,)
    better = own.prefer[: liking(own, me)]
    liked = tuple(node for node in better if node not in facts.drained and not facts.is_witness(node))
    return liked if me in own.prefer else (*liked, first)


def _bound_to(state: Leadership, facts: Facts, standings: Standings, app: str) -> str:
    """As `home_of`; data that is nowhere yet is begun beside the kernel, where its key can be written."""
    home = home_of(state, facts, standings, app)
    return home or (standing.holder(state, RESOURCE_KERNEL) if bound(app, standings) else "")


def loads(view: View) -> Counter[str]:
    """How many apps each node leads."""
    held = (record.value.node for name, record in view.epochs.items() if app_of(name) and not view.vacant(name))
    return Counter(held)


def candidates(state: Leadership, facts: Facts, own: Mapping[str, Standing], app: str) -> tuple[Candidate, ...]:
    """Every node, and whether it could lead the app now."""
    standings = standings_of(state, facts, own)
    leader, home = standing.holder(state, resource_for_app(app)), _bound_to(state, facts, standings, app)
    names = sorted({*facts.nodes, state.config.node})
    found = ((name, "" if name == leader else _unfit(state, facts, standings, app, name, home)) for name in names)
    return tuple(
        Candidate(node=name, eligible=not why, reason=why or ("leads it" if name == leader else "could take over"))
        for name, why in found
    )


def able(state: Leadership, facts: Facts, own: Mapping[str, Standing], app: str) -> tuple[str, ...]:
    """The nodes that could lead the app now, the best one first."""
    fit = {each.node for each in candidates(state, facts, own, app) if each.eligible}
    standings = {node: each for node, each in standings_of(state, facts, own).items() if node in fit}
    return ranked([app], standings, loads(state.view))[app]


def _unfit(state: Leadership, facts: Facts, standings: Standings, app: str, node: str, home: str) -> str:
    if facts.is_witness(node):
        return "a witness votes and runs no apps"
    if node not in state.view.sessions:
        return "it has no session: it is off, cut off, or just starting"
    each = standings.get(node, {}).get(app)
    if each is None:
        return "it does not ask to lead it: the app is stopped, or the node has just started"
    if not each.reason and home not in ("", node):
        return f"the app's data is on {home}"
    return each.reason or (standing.DRAINED if node in facts.drained else "")


def _group(view: View, facts: Facts, app: str) -> Group:
    """What was on a node that was taken out is nobody's, once that one has no session any more."""
    epoch = view.epochs.get(resource_for_app(app))
    if epoch is None:
        return Group("", False)
    owner, sid = epoch.value.node, view.sid(epoch.value.node)
    if facts.nodes and owner not in facts.nodes and not sid:
        return Group("", False)
    return Group(owner, epoch.value.held and sid == epoch.value.sid)

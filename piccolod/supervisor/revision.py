"""RestartOnKernelRevChange: which module must act on a newer verified rev, and when. Pure: time is an argument.

Level-triggered: a flagged module's `applied` follows `verified`, whatever happened in between. A rev that touches none of
the collections that a module reads counts as applied there, and so does the leader's own commit everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

from piccolod.kernel import ModuleSpec


class Verb(Enum):
    RELOAD = "reload"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Action:
    verb: Verb
    module: str
    rev: int


@dataclass(frozen=True, slots=True)
class Pace:
    quiet_s: float = 0.25
    longest_quiet_s: float = 1.0
    between_restarts_s: float = 5.0
    reload_s: float = 5.0
    tries: int = 3
    try_s: float = 15.0  # a restarted module that is not ready by then has failed its try
    longest_busy_s: float = 600.0  # a restart is put off while the module is busy, and no longer than this


@dataclass(frozen=True, slots=True)
class Follower:
    """A flagged module: what it acts on, and what it should."""

    reads: tuple[str, ...]
    applied: int = 0
    due: int = 0
    reloads: bool = False
    restarted_at: float = float("-inf")
    tries: int = 0
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """The one module that is being brought to `rev` now."""

    module: str
    rev: int
    verb: Verb
    until: float


@dataclass(frozen=True, slots=True)
class Rollout:
    followers: Mapping[str, Follower] = field(default_factory=dict)
    verified: int = 0
    changed_at: float = float("-inf")
    pending_since: float = float("-inf")
    attempt: Attempt | None = None


def begin(table: Iterable[ModuleSpec]) -> Rollout:
    """Followers in the order in which they are restarted: who depends on others comes first."""
    flagged = [row for row in table if row.restart_on_kernel_rev_change]
    return Rollout(MappingProxyType({row.name: Follower(row.reads) for row in reversed(flagged)}))


def verified(state: Rollout, rev: int, collections: Iterable[str], leader: bool, now: float) -> Rollout:
    """The local store is verified up to `rev`, which touched `collections`; empty means that nobody knows which."""
    if rev <= state.verified:
        return state
    touched = frozenset(collections)
    people = {name: _told(follower, rev, touched, leader) for name, follower in state.followers.items()}
    was_pending = any(_behind(follower) for follower in state.followers.values())
    return replace(
        state,
        followers=MappingProxyType(people),
        verified=rev,
        changed_at=now,
        pending_since=state.pending_since if was_pending else now,
    )


def ready(state: Rollout, module: str, applied: int, reloads: bool) -> Rollout:
    """`module` does its work from now on, on the basis of `applied`; 0: it does not say, and read what there was."""
    follower = state.followers.get(module)
    if follower is None:
        return state
    return _ended(_with(state, module, replace(follower, applied=applied or state.verified, reloads=reloads)), module)


def applied(state: Rollout, module: str, rev: int) -> Rollout:
    follower = state.followers.get(module)
    if follower is None or rev <= follower.applied:
        return state
    return _ended(_with(state, module, replace(follower, applied=rev)), module)


def step(
    state: Rollout, alive: Iterable[str], busy: Iterable[str], now: float, pace: Pace
) -> tuple[Rollout, list[Action]]:  # fmt: skip
    """What to do now. `alive`: the modules that are ready; `busy`: whose restart would cut work that somebody waits for.

    One module at a time; the first that fails ends the roll-out.
    """
    if state.attempt is not None:
        return _judge(state, state.attempt, now, pace)
    if not _quiet(state, now, pace) or any(follower.stale for follower in state.followers.values()):
        return state, []
    living = set(alive)
    spared = set(busy) if now - state.pending_since < pace.longest_busy_s else set()
    for name, follower in state.followers.items():
        if _behind(follower) and name in living:
            if follower.reloads and follower.tries == 0:
                return _try(state, name, follower, Verb.RELOAD, now, pace)
            if name in spared:
                continue
            if now - follower.restarted_at >= pace.between_restarts_s:
                return _try(state, name, follower, Verb.RESTART, now, pace)
            return state, []
    return state, []


def next_at(state: Rollout, now: float, pace: Pace) -> float | None:
    """When `step` is due at the latest; None while nothing is pending."""
    if state.attempt is not None:
        return state.attempt.until
    behind = [follower for follower in state.followers.values() if _behind(follower)]
    if not behind or any(follower.stale for follower in state.followers.values()):
        return None
    quiet_at = min(state.changed_at + pace.quiet_s, state.pending_since + pace.longest_quiet_s)
    allowed_at = min(follower.restarted_at + pace.between_restarts_s for follower in behind)
    # Who is behind and not alive reports READY, which is an event of its own; a second is the backstop.
    return max(quiet_at, allowed_at, now + 0.01) if max(quiet_at, allowed_at) > now else now + 1.0


def stale(state: Rollout) -> dict[str, int]:
    """Modules that could not be brought to a verified rev, with that rev."""
    return {name: follower.due for name, follower in state.followers.items() if follower.stale}


def _told(follower: Follower, rev: int, touched: frozenset[str], leader: bool) -> Follower:
    concerns = not leader and (not touched or "*" in touched or not follower.reads or not touched.isdisjoint(follower.reads))
    if concerns:
        # A newer rev may well be the repair of the one that could not be applied.
        return replace(follower, due=rev, tries=0, stale=False)
    return follower if _behind(follower) else replace(follower, applied=rev, due=rev)


def _behind(follower: Follower) -> bool:
    return follower.applied < follower.due


def _quiet(state: Rollout, now: float, pace: Pace) -> bool:
    return now - state.changed_at >= pace.quiet_s or now - state.pending_since >= pace.longest_quiet_s


def _try(state: Rollout, name: str, follower: Follower, verb: Verb, now: float, pace: Pace) -> tuple[Rollout, list[Action]]:
    until = now + (pace.reload_s if verb is Verb.RELOAD else pace.try_s)
    restarted_at = now if verb is Verb.RESTART else follower.restarted_at
    tried = replace(follower, tries=follower.tries + 1, restarted_at=restarted_at)
    state = replace(_with(state, name, tried), attempt=Attempt(name, state.verified, verb, until))
    return state, [Action(verb, name, state.verified)]


def _judge(state: Rollout, attempt: Attempt, now: float, pace: Pace) -> tuple[Rollout, list[Action]]:
    if now < attempt.until:
        return state, []
    return _failed(replace(state, attempt=None), attempt.module, pace), []


def _ended(state: Rollout, module: str) -> Rollout:
    """A word of the module that is being tried: either it is where it should be, or this try has failed."""
    if state.attempt is None or state.attempt.module != module:
        return state
    follower = state.followers[module]
    if follower.applied < min(state.attempt.rev, follower.due):
        if state.attempt.verb is Verb.RELOAD:
            return state
        return _failed(replace(state, attempt=None), module, Pace())
    return replace(_with(state, module, replace(follower, tries=0)), attempt=None)


def _failed(state: Rollout, module: str, pace: Pace) -> Rollout:
    follower = state.followers[module]
    return _with(state, module, replace(follower, stale=follower.tries >= pace.tries))


def _with(state: Rollout, module: str, follower: Follower) -> Rollout:
    return replace(state, followers=MappingProxyType({**state.followers, module: follower}))

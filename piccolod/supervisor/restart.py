"""When a module that died is started again, and in which order modules start and stop. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from piccolod.kernel import ModuleSpec


@dataclass(frozen=True, slots=True)
class Policy:
    first_s: float = 0.1
    ceiling_s: float = 30.0
    jitter: float = 0.2
    healthy_s: float = 60.0  # ready for so long: what was is forgotten
    window_s: float = 30.0
    window_deaths: int = 5  # more of them within the window is a crash loop
    loop_s: float = 30.0


@dataclass(frozen=True, slots=True)
class History:
    """What is remembered of a module's unplanned deaths."""

    deaths: tuple[float, ...] = ()  # those within the window
    streak: int = 0  # since it was last healthy
    looping: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    history: History
    delay_s: float


def after_death(history: History, policy: Policy, now: float, ready_s: float, luck: float) -> Verdict:
    """What follows the unplanned death of a module that had been ready for `ready_s` (0: never).

    `luck`, in [0, 1), spreads restarts of several modules. There is no giving up: a module in a crash loop is tried for ever.
    """
    if ready_s >= policy.healthy_s:
        history = History()
    deaths = (*(at for at in history.deaths if now - at <= policy.window_s), now)
    looping = history.looping or len(deaths) > policy.window_deaths
    delay_s = policy.loop_s if looping else _backoff(history.streak, policy, luck)
    return Verdict(History(deaths, history.streak + 1, looping), delay_s)


def while_ready(history: History, policy: Policy, ready_s: float) -> History:
    """A module that stays healthy leaves its crash loop without having to die once more."""
    return History() if ready_s >= policy.healthy_s and history.streak else history


def _backoff(streak: int, policy: Policy, luck: float) -> float:
    if streak == 0:
        return 0.0
    delay_s = policy.first_s * 2.0 ** min(streak - 1, 32)
    return min(policy.ceiling_s, delay_s * (1 + policy.jitter * (2 * luck - 1)))


def missing(spec: ModuleSpec, ready: Collection[str]) -> list[str]:
    """What `spec` needs and is not ready."""
    return [name for name in spec.needs if name not in ready]


def followers(table: Iterable[ModuleSpec], name: str) -> list[str]:
    """Who is restarted whenever `name` is, directly or through others, in the table's order."""
    rows = tuple(table)
    found = {name}
    while more := {row.name for row in rows if row.name not in found and found.intersection(row.restart_with)}:
        found |= more
    return [row.name for row in rows if row.name in found and row.name != name]


def stop_layers(table: Sequence[ModuleSpec], alive: Collection[str]) -> list[list[str]]:
    """Who stops together, first layer first: nobody stops before those who need it are gone."""
    rows = [row for row in table if row.name in alive]
    layers: list[list[str]] = []
    while rows:
        needed = {name for row in rows for name in row.needs}
        layer = [row.name for row in rows if row.name not in needed] or [row.name for row in rows]
        layers.append(layer[::-1])
        rows = [row for row in rows if row.name not in layer]
    return layers

"""Is the app well? A state machine over the results of its probes. Pure: time is an argument."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from services.apps.manifest import Healthcheck

# Until it serves for the first time the app is asked often: this is part of every start that somebody waits for.
FIRST_INTERVAL_S: Final = 0.02
SLOWEST_FIRST_S: Final = 0.5
# Without a healthcheck an app counts as ready when its listeners accept, or after this.
PATIENCE_S: Final = 30.0


class Phase(StrEnum):
    STARTING = "starting"  # has not served yet
    READY = "ready"
    FAILING = "failing"  # served, and the last probes failed, fewer than `retries`
    UNHEALTHY = "unhealthy"


class Rules(msgspec.Struct, frozen=True):
    """What the manifest says about judging. `restarts` false: without a healthcheck nobody asked for restarts."""

    interval_s: float = 5.0
    retries: int = 3
    start_period_s: float = PATIENCE_S
    restarts: bool = False


class Health(msgspec.Struct, frozen=True):
    """Of one run of one container, which began at `since_at`."""

    since_at: float
    phase: Phase = Phase.STARTING
    failures: int = 0
    probes: int = 0
    ready_at: float = 0.0
    reason: str = ""

    @property
    def serves(self) -> bool:
        return self.phase in (Phase.READY, Phase.FAILING)


def rules_of(check: Healthcheck | None) -> Rules:
    if check is None:
        return Rules()
    return Rules(check.interval_s, check.retries, check.start_period_s, restarts=True)


def step(health: Health, rules: Rules, ok: bool, reason: str, now: float) -> Health:
    """The judgement after one more probe. `reason` says why it failed."""
    probes = health.probes + 1
    if ok:
        ready_at = health.ready_at or now
        return Health(health.since_at, Phase.READY, 0, probes, ready_at, "")
    if health.phase is Phase.STARTING:
        return _still_starting(health, rules, probes, reason, now)
    failures = health.failures + 1
    unhealthy = failures >= rules.retries and rules.restarts
    return Health(health.since_at, Phase.UNHEALTHY if unhealthy else Phase.FAILING, failures, probes, health.ready_at, reason)


def _still_starting(health: Health, rules: Rules, probes: int, reason: str, now: float) -> Health:
    """Failures count from the end of the start period on."""
    late = now - health.since_at >= rules.start_period_s
    failures = health.failures + 1 if late else 0
    phase = Phase.STARTING
    if late and not rules.restarts:
        phase = Phase.FAILING
    elif failures >= rules.retries:
        phase = Phase.UNHEALTHY
    return Health(health.since_at, phase, failures, probes, 0.0, reason)


def next_probe_s(health: Health, rules: Rules) -> float:
    """How long to wait before the next probe."""
    if health.phase is Phase.STARTING and not health.failures:
        return min(FIRST_INTERVAL_S * 1.3**health.probes, SLOWEST_FIRST_S, rules.interval_s)
    return rules.interval_s

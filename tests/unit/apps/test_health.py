"""When an app is ready, failing, unhealthy, and when it is asked again."""

from __future__ import annotations

from services.apps import health
from services.apps.health import Health, Phase, Rules

RULES = Rules(interval_s=5.0, retries=3, start_period_s=30.0, restarts=True)


def after(state: Health, *results: bool, start: float = 1.0, rules: Rules = RULES) -> Health:
    for index, ok in enumerate(results):
        state = health.step(state, rules, ok, "" if ok else "refused", start + index)
    return state


def test_failures_within_the_start_period_do_not_count() -> None:
    state = after(Health(0.0), *[False] * 20)
    assert (state.phase, state.failures) == (Phase.STARTING, 0)
    assert after(state, True, start=25.0).phase is Phase.READY


def test_after_the_start_period_the_retries_count() -> None:
    state = after(Health(0.0), False, False, start=40.0)
    assert state.phase is Phase.STARTING
    assert after(state, False, start=50.0).phase is Phase.UNHEALTHY


def test_three_failures_in_a_row_are_unhealthy_and_one_success_forgives() -> None:
    state = after(Health(0.0), True, False, False)
    assert state.phase is Phase.FAILING
    assert state.serves
    assert after(state, False).phase is Phase.UNHEALTHY
    assert after(state, True, False, False).phase is Phase.FAILING


def test_without_a_healthcheck_nobody_is_restarted() -> None:
    rules = health.rules_of(None)
    assert after(Health(0.0), False, start=40.0, rules=rules).phase is Phase.FAILING
    assert after(Health(0.0), True, *[False] * 50, rules=rules).phase is Phase.FAILING


def test_a_starting_app_is_asked_often_and_then_at_its_interval() -> None:
    waits = []
    state = Health(0.0)
    for _ in range(15):
        waits.append(health.next_probe_s(state, RULES))
        state = after(state, False)
    assert waits[0] == 0.02
    assert waits == sorted(waits)
    assert waits[-1] == 0.5
    assert health.next_probe_s(after(state, True), RULES) == 5.0

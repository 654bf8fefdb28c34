"""How long a failing app waits."""

from __future__ import annotations

from services.apps.backoff import CEILING_S, FAILED_S, Failures


def failed(*times: float) -> Failures:
    state = Failures()
    for at in times:
        state = state.failed(at, "x")
    return state


def test_the_first_failure_waits_for_nothing() -> None:
    assert failed(10.0).retry_at == 0.0


def test_each_further_failure_doubles_the_wait_up_to_a_ceiling() -> None:
    waits = [round(failed(*(float(i * 700) for i in range(n))).retry_at - (n - 1) * 700, 3) for n in range(2, 14)]
    assert waits[:3] == [0.1, 0.2, 0.4]
    assert max(waits) == CEILING_S


def test_too_many_within_ten_minutes_is_failed_and_tried_again_each_minute() -> None:
    state = failed(*map(float, range(6)))
    assert state.too_many
    assert state.retry_at == 5.0 + FAILED_S
    assert not failed(*map(float, range(5))).too_many
    assert not failed(*(i * 200.0 for i in range(6))).too_many


def test_a_minute_of_health_makes_the_next_failure_a_first_one() -> None:
    state = failed(*map(float, range(6))).well().failed(100.0, "y")
    assert not state.too_many
    assert state.retry_at == 0.0
    assert state.total == 7

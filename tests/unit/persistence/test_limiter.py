"""A guesser gets few guesses, an owner who mistypes hardly notices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piccolod.errors import TooMany
from services.persistence.limiter import FORGET_S, GLOBAL, PER_SOURCE, SOURCES_KEPT, Limiter


def wrong(limiter: Limiter, source: str, now: float) -> bool:
    """A wrong guess; False when it was not even tried."""
    try:
        limiter.admit(source, now)
    except TooMany:
        return False
    return True


def test_a_few_mistakes_cost_nothing_and_then_the_door_shuts() -> None:
    limiter = Limiter()
    assert [wrong(limiter, "a", 0.0) for _ in range(7)] == [True] * PER_SOURCE.free + [False] * 2


def test_a_right_guess_is_refused_during_the_penalty_too_and_says_when_to_come_back() -> None:
    limiter = Limiter()
    for _ in range(PER_SOURCE.free):
        limiter.admit("a", 0.0)
    with pytest.raises(TooMany) as caught:
        limiter.admit("a", 0.25)
    assert caught.value.retry_after_s == pytest.approx(0.75)
    limiter.admit("a", 1.0)


def test_each_wrong_guess_after_that_doubles_the_wait_up_to_a_ceiling() -> None:
    limiter, now, waits = Limiter(), 0.0, []
    for _ in range(PER_SOURCE.free + 15):
        limiter.admit("a", now)
        try:
            limiter.admit("a", now)
        except TooMany as error:
            assert error.retry_after_s is not None
            waits.append(error.retry_after_s)
            now += error.retry_after_s
            continue
        limiter.excuse("a")
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == PER_SOURCE.most_s


def test_a_right_guess_clears_its_source_and_only_that() -> None:
    limiter = Limiter()
    for _ in range(PER_SOURCE.free - 1):
        limiter.admit("a", 0.0)
        limiter.admit("b", 0.0)
    limiter.right("a")
    assert wrong(limiter, "a", 0.0)
    assert wrong(limiter, "a", 0.0)
    assert wrong(limiter, "b", 0.0)
    assert not wrong(limiter, "b", 0.0)


def test_many_sources_together_are_limited_as_one() -> None:
    limiter = Limiter()
    assert sum(wrong(limiter, f"source-{n}", 0.0) for n in range(1000)) == GLOBAL.free
    with pytest.raises(TooMany):
        limiter.admit("the owner", 0.0)
    limiter.admit("the owner", GLOBAL.most_s)


def test_guesses_sent_at_once_count_like_guesses_sent_one_by_one() -> None:
    """None of them has an answer yet when the next one comes."""
    limiter = Limiter()
    assert sum(wrong(limiter, "a", 0.0) for _ in range(100)) == PER_SOURCE.free


def test_an_attempt_that_was_never_tried_is_not_charged() -> None:
    limiter = Limiter()
    for _ in range(100):
        limiter.admit("a", 0.0)
        limiter.excuse("a")


def test_old_mistakes_are_forgotten() -> None:
    limiter = Limiter()
    for _ in range(PER_SOURCE.free - 1):
        limiter.admit("a", 0.0)
    later = FORGET_S + 1
    assert [wrong(limiter, "a", later) for _ in range(PER_SOURCE.free + 1)] == [True] * PER_SOURCE.free + [False]


def test_the_table_of_sources_is_bounded() -> None:
    limiter = Limiter()
    now = 0.0
    for n in range(SOURCES_KEPT * 3):
        now += GLOBAL.most_s
        limiter.admit(f"source-{n}", now)
    assert len(limiter._sources) == SOURCES_KEPT


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 20), st.booleans()), max_size=200))
def test_whatever_comes_no_source_gets_more_than_its_share(attempts: list[tuple[str, float, bool]]) -> None:
    """Wrong guesses alone: at most the free ones and one for each doubling that fits into the time."""
    limiter, now, admitted = Limiter(), 0.0, 0
    for source, pause, _ in attempts:
        now += pause
        if wrong(limiter, source, now) and source == "a":
            admitted += 1
    resets = 1 + int(now // FORGET_S)
    doublings = 0
    while (2 ** (doublings + 1)) - 1 <= now:
        doublings += 1
    assert admitted <= resets * (PER_SOURCE.free + doublings + 1 + int(now / PER_SOURCE.most_s))

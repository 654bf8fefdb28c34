from __future__ import annotations

from typing import Any, cast

from services.router.tunnel.way import FIRST_PAUSE_S, LONGEST_PAUSE_S, Way

CLIENT, LINE = cast(Any, object()), cast(Any, object())


def waiting(count: int = 3) -> Way:
    way = Way(None)
    way.queue.extend(cast(Any, object()) for _ in range(count))
    return way


def test_a_leader_that_serves_is_asked_for_all_at_once() -> None:
    way = waiting(3)
    assert way.may_ask(0.0)
    assert way.wants(0.0) == 3


def test_a_leader_that_refused_is_asked_for_one_after_a_pause() -> None:
    way = waiting(3)
    way.refused(10.0)
    assert not way.may_ask(10.0 + FIRST_PAUSE_S - 0.001)
    assert way.wants(10.0) == 0
    assert way.wants(10.0 + FIRST_PAUSE_S) == 1
    way.asking[CLIENT] = LINE
    assert not way.may_ask(10.0 + FIRST_PAUSE_S)


def test_the_pause_grows_to_half_a_second_and_no_further() -> None:
    way, now, pauses = waiting(), 0.0, []
    for _ in range(6):
        way.refused(now)
        pauses.append(round(way.try_at - now, 3))
        now = way.try_at
    assert pauses == [0.05, 0.1, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


def test_answers_to_several_who_asked_at_once_are_one_refusal() -> None:
    way = waiting()
    for _ in range(8):
        way.refused(5.0)
    assert way.try_at == 5.0 + FIRST_PAUSE_S


def test_one_that_is_served_frees_all_the_others() -> None:
    way = waiting(3)
    way.refused(5.0)
    way.served()
    assert way.wants(5.0) == 3

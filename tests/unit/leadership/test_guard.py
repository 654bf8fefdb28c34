from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from piccolod import clock
from piccolod.leadership.guard import CALM_S, GUARD_TICK_S, next_look_s, overdue
from piccolod.leadership.leash_table import Entry
from piccolod.leadership.page import Page, Term

BOOT, NOW = "this-boot", 100.0


def page(terms: dict[str, Term], hard_at: float = 110.0, boot_id: str = BOOT) -> Page:
    return Page(1, 1, 1, 0, boot_id, hard_at, hard_at, terms)


def entry(resource: str = "app:a", token: int = 7, boot_id: str = BOOT) -> Entry:
    return Entry(resource.replace(":", "-"), resource, token, 1, "", 4242, 1, boot_id)


def test_a_held_term_is_left_alone_open_or_closing() -> None:
    for closing in (False, True):
        assert overdue(page({"app:a": Term(7, 1, closing)}), [entry()], NOW, BOOT) == []


def test_all_die_when_the_deadline_is_reached_whatever_the_page_says() -> None:
    terms = {"app:a": Term(7, 1), "app:b": Term(8, 1, closing=True)}
    both = [entry(), entry("app:b", 8)]
    assert overdue(page(terms, hard_at=NOW), both, NOW, BOOT) == both
    assert overdue(page(terms, hard_at=NOW + 0.001), both, NOW, BOOT) == []


def test_a_token_that_left_the_page_is_overdue_before_any_deadline() -> None:
    old = entry(token=6)
    assert overdue(page({"app:a": Term(7, 1)}, hard_at=clock.FOREVER), [old, entry()], NOW, BOOT) == [old]
    assert overdue(page({}, hard_at=clock.FOREVER), [entry()], NOW, BOOT) == [entry()]


def test_a_token_that_came_again_with_an_etcd_that_was_begun_anew_is_overdue() -> None:
    assert overdue(page({"app:a": Term(7, 2)}), [entry(token=7)], NOW, BOOT) == [entry(token=7)]


def test_no_page_and_a_page_of_another_boot_hold_nothing() -> None:
    assert overdue(None, [entry()], NOW, BOOT) == [entry()]
    assert overdue(page({"app:a": Term(7, 1)}, boot_id="other"), [entry()], NOW, BOOT) == [entry()]


def test_an_entry_of_another_boot_is_dead_already() -> None:
    assert overdue(None, [entry(boot_id="other")], NOW, BOOT) == []


@given(st.floats(0, 1e6), st.one_of(st.just(clock.FOREVER), st.floats(0, 1e6)))
def test_a_guard_sleeps_a_tick_at_most_never_past_the_deadline_and_never_spins(now: float, hard_at: float) -> None:
    sleep_s = next_look_s(page({}, hard_at=hard_at), now)
    assert 0 < sleep_s <= (CALM_S if hard_at == clock.FOREVER else GUARD_TICK_S)
    assert hard_at <= now or now + sleep_s <= hard_at + 1e-9

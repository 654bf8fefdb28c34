from __future__ import annotations

from services.router.deadlines import Deadlines
from services.router.hold import RELEASED_AT_ONCE, Hold


def test_what_was_added_first_ends_first_and_only_once() -> None:
    book: Deadlines[str] = Deadlines()
    book.add("a", 1.0)
    book.add("b", 2.0)
    book.add("c", 3.0)
    book.discard("b")
    assert book.expired(0.5) == []
    assert book.expired(2.5) == ["a"]
    assert book.expired(2.5) == []
    assert list(book) == ["c"]
    assert "c" in book


def test_the_oldest_are_released_first_and_in_portions() -> None:
    hold: Hold[int] = Hold()
    for number in range(RELEASED_AT_ONCE + 2):
        hold.add(number, 10.0)
    assert hold.release() == list(range(RELEASED_AT_ONCE))
    assert len(hold) == 2
    assert hold.release() == [RELEASED_AT_ONCE, RELEASED_AT_ONCE + 1]
    assert hold.release() == []


def test_who_left_is_neither_released_nor_given_up() -> None:
    hold: Hold[str] = Hold()
    hold.add("gone", 1.0)
    hold.add("patient", 1.0)
    hold.leave("gone")
    hold.leave("gone")
    assert hold.given_up(0.9) == []
    assert hold.given_up(1.0) == ["patient"]
    assert hold.dismiss() == []

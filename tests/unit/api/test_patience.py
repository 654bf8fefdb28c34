"""An order that is given again while what refuses it may pass."""

from __future__ import annotations

import asyncio

import pytest

from piccolod.errors import Busy, Conflict, PiccoloError, StoreUnavailable
from services.api.patience import patiently


class Orders:
    """Refused with each of these in turn, then taken."""

    def __init__(self, *refusals: PiccoloError) -> None:
        self.refusals = list(refusals)
        self.left_s: list[float] = []

    async def give(self, left_s: float) -> str:
        self.left_s.append(left_s)
        if self.refusals:
            raise self.refusals.pop(0)
        return "done"


def given(orders: Orders, within_s: float = 5.0) -> str:
    return asyncio.run(patiently(orders.give, (Busy, StoreUnavailable), within_s, 0.01))


def test_what_passes_is_waited_for_and_each_try_knows_how_long_is_left() -> None:
    orders = Orders(Busy("another one"), StoreUnavailable("an election"))
    assert given(orders) == "done"
    assert 5.0 >= orders.left_s[0] > orders.left_s[1] > orders.left_s[2] > 0


def test_what_does_not_pass_is_told_at_once() -> None:
    orders = Orders(Busy("another one"), Conflict("no"))
    with pytest.raises(Conflict):
        given(orders)
    assert len(orders.left_s) == 2


def test_the_last_refusal_is_told_when_the_time_is_over() -> None:
    orders = Orders(*(Busy(str(number)) for number in range(1000)))
    with pytest.raises(Busy) as refusal:
        given(orders, 0.05)
    assert 1 < len(orders.left_s) < 1000 and refusal.value.detail == str(len(orders.left_s) - 1)

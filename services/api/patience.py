"""An order that is given again while what refuses it may pass in a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from piccolod import clock
from piccolod.errors import PiccoloError

T = TypeVar("T")


async def patiently(
    order: Callable[[float], Awaitable[T]], passing: tuple[type[PiccoloError], ...], within_s: float, pause_s: float
) -> T:
    """`order(left_s)` has to be the same the second time. Raises its last refusal once `within_s` is over, others at once."""
    give_up_at = clock.now() + within_s
    while True:
        try:
            return await order(give_up_at - clock.now())
        except passing:
            if clock.now() + pause_s >= give_up_at:
                raise
        await asyncio.sleep(pause_s)

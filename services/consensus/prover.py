"""Proves that nothing of a resource acts here any more: what END, RELEASE and HANDOVER wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from piccolod.errors import PeerRestarted, PiccoloError
from piccolod.leadership import leash_table
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.paths import Paths
from piccolod.protocol.log import Drain

_LOOK_S: Final = 0.02
_LOOK_LATER_S: Final = 0.2
_DRAIN_S: Final = 2.0
Call = Callable[..., Awaitable[Any]]


class Prover:
    """`call` asks another module, as `Module.call` does. `store_lives`: whether persistence has a process."""

    def __init__(self, paths: Paths, call: Call, store_lives: Callable[[], bool]) -> None:
        self._table = leash_table.TableReader(paths.leash)
        self._call = call
        self._store_lives = store_lives

    async def prove(self, resource: str) -> None:
        """Returns once nothing of the resource lives and none of its starts is in flight; until then, and in doubt, it waits.

        The page must show the term closing or gone: what starts after the look finds the gate shut.
        """
        pause_s = _LOOK_S
        while leash_table.alive(self._table.entries().values(), resource):
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LOOK_LATER_S)
        if resource == RESOURCE_KERNEL:
            await self._drain()

    async def _drain(self) -> None:
        """A persistence that died has nothing on its way: what consensus sent for it is refused with the token."""
        while self._store_lives():
            try:
                await self._call(Drain(), timeout_s=_DRAIN_S)
                return
            except PeerRestarted:
                return
            except PiccoloError:
                await asyncio.sleep(_LOOK_S)


def running(paths: Paths) -> set[str]:
    """Every resource of which something may live here, whoever started it."""
    return {entry.resource for entry in leash_table.alive(leash_table.read(paths.leash).values())}

"""Persistence of one simulated node: writes as the kernel's leader, and may stand still between its check and the act."""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolod.leadership import events
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.transactions import Put
from tests.sim.oracle import HEAD

if TYPE_CHECKING:
    from tests.sim.node import Node


class Persistence:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._writing = False

    def go_on(self) -> None:
        """Writes now and then for as long as the gate holds."""
        if not self._writing:
            self._writing = True
            self._write()

    def _write(self) -> None:
        node, world = self._node, self._node.world
        token = node.gate(RESOURCE_KERNEL)
        if not token:
            self._writing = False
            return
        delay_s = world.between(0, 2 * node.timing.span_s) if world.happens(0.05) else 0.0
        world.after(delay_s, self._propose, token)
        world.after(world.between(1, 3) * node.timing.beat_s + delay_s, self._write)

    def _propose(self, token: int) -> None:
        if self._node.driver is not None:
            self._node.driver.feed(events.Propose(1, token, (), (Put(HEAD, token),)))

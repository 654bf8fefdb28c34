"""The judge. It alone knows true time, so whether two nodes acted at once is decided exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from piccolod.leadership import keys
from piccolod.leadership.keys import EpochRecord
from piccolod.leadership.transactions import Kind, Transaction
from tests.sim.store import Store
from tests.sim.world import World

if TYPE_CHECKING:
    from tests.sim.node import Node

HEAD = "ctl/head"
_ROUNDING = 1e-5


class Oracle:
    """Promise 1: intervals with a live effect of one resource never overlap. Promise 2: no write under a stale token."""

    def __init__(self, world: World, store: Store) -> None:
        self._world = world
        self._store = store
        self._live: dict[str, dict[Node, float]] = {}  # since when
        self._kernel_until: dict[Node, float] = {}
        self._owners: dict[str, str] = {}
        self.listener: Callable[[str, str, bool], None] = lambda node, resource, lives: None
        self.violations: list[str] = []
        self.takeovers = 0
        self.writes = 0
        self.excused = 0
        store.on_commit.append(self._committed)

    # --- containers

    def begins(self, resource: str, node: Node) -> None:
        acting = self._live.setdefault(resource, {})
        for other in acting:
            if other is not node:
                # What outlives a stall of its whole machine for a moment is promise 4.
                self._two(resource, node, other, node.stalled_lately or other.stalled_lately)
        acting[node] = self._world.now
        self.listener(node.name, resource, True)

    def ends(self, resource: str, node: Node) -> None:
        began_at = self._live.get(resource, {}).pop(node, None)
        if began_at is not None:
            self.listener(node.name, resource, False)
        if began_at is not None and self._live[resource] and began_at < node.stalled_until and node.woke_late:
            timing = node.timing
            allowed_s = timing.guard_tick_s + timing.lateness_s + timing.stop_s
            if self._world.now > node.stalled_until + allowed_s + _ROUNDING:
                self._violated(f"{resource}: {node.name} acted on {self._world.now - node.stalled_until:.3f} s after it woke")

    def live(self, resource: str) -> list[str]:
        return [node.name for node in self._live.get(resource, {})]

    # --- the kernel, which acts only through the gate

    def kernel_acts(self, node: Node, until: float) -> None:
        now = self._world.now
        began = until > now >= self._kernel_until.get(node, -1.0)
        self._kernel_until[node] = until
        if began:
            for other, its_end in self._kernel_until.items():
                if other is not node and its_end > now:
                    self._two("kernel", node, other, other.clock_stood or node.clock_stood)

    def kernel_leaders(self) -> list[str]:
        return [node.name for node, until in self._kernel_until.items() if until > self._world.now]

    # --- the store

    def _committed(self, transaction: Transaction, rev: int) -> None:
        if transaction.kind is Kind.PROPOSAL:
            self.writes += 1
            token = next(put.value for put in transaction.puts if put.key == HEAD)
            epoch = self._store.records[keys.EPOCH + "kernel"]
            if epoch.mod != token or not epoch.value.held:
                self._violated(f"kernel: a write under token {token} was taken after {epoch.mod}")
        for put in transaction.puts:
            if isinstance(put.value, EpochRecord) and put.value.held:
                resource = put.key.removeprefix(keys.EPOCH)
                before = self._owners.get(resource)
                self.takeovers += before is not None and before != put.value.node
                self._owners[resource] = put.value.node

    def _two(self, resource: str, node: Node, other: Node, excused: bool) -> None:
        if excused:
            self.excused += 1
        else:
            self._violated(f"{resource}: {node.name} acts while {other.name} does")

    def _violated(self, what: str) -> None:
        self.violations.append(f"{self._world.now:.3f} s: {what}")

"""Good days: faults that are all shorter than the budget, and must change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.node import Node

# What a blip may last after the moment that it is made known here: `blip_s`, less a way over the network.
_WAY_S = 0.02


class Blips:
    stretch = 1.0  # of the longest

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._kinds: tuple[Callable[[Node, float], None], ...] = (
            self._cut, self._deafen, self._blind, self._elect, self._freeze_consensus, self._freeze_guards,
            self._freeze_supervisor, self._restart_consensus, self._revoke, self._fool,
        )  # fmt: skip

    def strike(self) -> None:
        world = self._world
        longest_s = self.stretch * self._cluster.timing.blip_s - _WAY_S
        for_s = longest_s if world.happens(0.3) else world.between(0, longest_s)
        world.chance.choice(self._kinds)(world.chance.choice(self._cluster.nodes), for_s)

    def _cut(self, node: Node, for_s: float) -> None:
        node.link.cut_until = self._world.now + for_s

    def _deafen(self, node: Node, for_s: float) -> None:
        node.link.deaf_until = self._world.now + for_s

    def _blind(self, node: Node, for_s: float) -> None:
        node.link.blind_until = self._world.now + for_s

    def _elect(self, _node: Node, for_s: float) -> None:
        self._cluster.store.elect(for_s)

    def _freeze_consensus(self, node: Node, for_s: float) -> None:
        node.freeze("consensus", for_s)

    def _freeze_guards(self, node: Node, _for_s: float) -> None:
        """Leashes and apps may stand still for long: nobody waits for them while all is well."""
        for name in ("leash.0", "leash.1", "apps"):
            node.freeze(name, self._cluster.timing.span_s * 0.9)

    def _freeze_supervisor(self, node: Node, for_s: float) -> None:
        node.freeze("supervisor", for_s)

    def _restart_consensus(self, node: Node, for_s: float) -> None:
        node.kill_consensus(for_s)

    def _revoke(self, node: Node, _for_s: float) -> None:
        assert node.driver is not None
        self._cluster.store.revoke(node.driver.state.lease_id)

    def _fool(self, node: Node, for_s: float) -> None:
        """Keepalives are acknowledged, and do nothing: the lease runs out."""
        node.link.fooled_until = self._world.now + 3 * self._cluster.timing.span_s

"""The app manager of one simulated node: starts containers under the gate, arms them first, stops them when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.node import Node

_HANGS = 0.2  # so many containers ignore SIGTERM


class Apps:
    """create -> arm with both leashes -> start, where the OCI hook asks the gate once more -> live.

    What it knows of starts under way dies with it; the starts do not.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._starting: set[str] = set()
        self._live: set[str] = set()
        self._count = 0
        self._run = 0
        self.late = False

    def forget(self) -> None:
        """The process has died."""
        self._run += 1
        self._starting.clear()

    def lives(self, container: str) -> bool:
        return container in self._live

    def reconcile(self) -> None:
        """Starts what is led here and does not run."""
        node = self._node
        if not node.tree_up or node.page is None or node.is_frozen("apps"):
            return
        self.late = node.clock.now() >= node.page.soft_at
        if self.late:
            return  # once a heartbeat has moved the deadline
        present = {entry.resource for entry in node.table.values()} | self._starting
        for resource in node.page.terms:
            if resource.startswith("app:") and resource not in present and (token := node.gate(resource)):
                self._starting.add(resource)
                node.world.after(node.world.between(0, 0.03), self._arm, self._run, resource, token)

    def stop(self, resource: str) -> None:
        if self._node.is_frozen("apps"):
            self._node.world.at(self._node.thaws_at("apps"), self.stop, resource)
        elif self._node.tree_up:
            self.stop_politely(resource)

    def stop_politely(self, resource: str | None) -> None:
        """SIGTERM now; SIGKILL by itself after the grace."""
        node = self._node
        for container, entry in list(node.table.items()):
            if resource is None or entry.resource == resource:
                if node.world.happens(_HANGS):
                    node.world.after(node.timing.grace_s, node.kill, container)
                else:
                    node.dies(container, node.world.between(0.01, 0.2))

    def _arm(self, run: int, resource: str, token: int) -> None:
        node, world = self._node, self._node.world
        if run != self._run:
            return
        frozen_until = max(node.thaws_at(name) for name in ("apps", "leash.0", "leash.1"))
        if frozen_until > world.now:
            world.at(frozen_until, self._arm, run, resource, token)
            return
        self._starting.discard(resource)
        self._count += 1
        container = f"{node.boot_id}-{resource}-{self._count}"
        node.arm(container, resource, token)
        world.after(world.between(0.005, 0.2), self._hook, container, resource, token)

    def _hook(self, container: str, resource: str, token: int) -> None:
        node = self._node
        if container not in node.table:
            return
        if node.is_frozen("podman"):
            node.world.at(node.thaws_at("podman"), self._hook, container, resource, token)
        elif node.gate(resource) == token:
            node.world.after(node.world.between(0, 0.01), self._lives, container, resource)
        else:
            node.dies(container, 0.0)

    def _lives(self, container: str, resource: str) -> None:
        if self._node.is_frozen("podman"):
            self._node.world.at(self._node.thaws_at("podman"), self._lives, container, resource)
        elif container in self._node.table:
            self._live.add(container)
            self._node.oracle.begins(resource, self._node)

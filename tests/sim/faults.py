"""The bad days: a seeded schedule of faults, aimed at whoever leads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from piccolod.leadership import events
from piccolod.leadership.roles import Reason
from piccolod.leadership.view import Record

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.node import Node


class Faults:
    """One fault after the other, closely; often the next begins before the last has healed."""

    def __init__(self, cluster: Cluster, *, whole_stalls: bool) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._span_s = cluster.timing.span_s
        self.rolled_back = False  # a backup was restored under the same cluster id
        self._kinds: list[Callable[[Node], None]] = [
            self._power_off, self._power_off, self._power_off, self._power_off,
            self._crash_tree, self._crash_tree, self._crash_tree,
            self._cut, self._cut, self._cut, self._deafen, self._blind, self._answer_late, self._answer_late,
            self._freeze_consensus, self._freeze_consensus, self._freeze_consensus,
            self._freeze_guards, self._freeze_guards, self._freeze_supervisor,
            self._freeze_consensus_and_guards, self._freeze_consensus_and_guards,
            self._restart_consensus, self._restart_consensus,
            self._elect, self._power_off_and_elect, self._revoke, self._fool,
            self._switch_over, self._switch_over, self._switch_over, self._release, self._release, self._weather, self._freeze_podman,
        ]  # fmt: skip
        if whole_stalls:
            self._kinds += [self._stall_whole] * 6

    def strike(self) -> None:
        cluster, world = self._cluster, self._world
        node = cluster.holder(world.chance.choice(cluster.resources)) if world.happens(0.75) else None
        world.chance.choice(self._kinds)(node or world.chance.choice(cluster.nodes))

    def restore_backup(self) -> None:
        """etcd loses everything since a backup. A new `gen` begins it anew after W."""
        store, world = self._cluster.store, self._world
        lost_s = world.between(1, 4) * self._span_s
        world.after(lost_s, self._go_back, store.read(), store.rev)
        world.after(lost_s + 1.5 * self._span_s, self._recover)

    def _go_back(self, records: Mapping[str, Record[Any]], rev: int) -> None:
        """Under the same cluster id where every node can know better by its disk, else under a new one, as etcdctl does it.

        A node whose memory is older than the backup can not notice that revisions went back under the same id.
        """
        memories = [node.memory for node in self._cluster.nodes]
        known = all(memory is not None and memory.rev > rev for memory in memories)
        self.rolled_back = known
        self._cluster.store.go_back(records, rev, self._cluster.store.cluster_id + (not known))

    def _recover(self) -> None:
        store = self._cluster.store
        store.go_back(store.read(), store.rev, store.cluster_id + 100)
        store.begin_anew(2)

    def heal(self) -> None:
        now = self._world.now
        self._cluster.store.down_until = now
        for node in self._cluster.nodes:
            node.link.weather.calm_down()
            node.link.cut_until = node.link.deaf_until = node.link.blind_until = node.link.fooled_until = now
            node.power_on()

    def _long(self) -> float:
        """From within the budget to far beyond it."""
        return (
            self._world.between(0.1, 0.7) * self._span_s
            if self._world.happens(0.4)
            else self._world.between(0.7, 2.5) * self._span_s
        )

    # --- machines and processes

    def _power_off(self, node: Node) -> None:
        node.power_off()
        self._world.after(self._world.between(0.3, 2.0) * self._span_s, node.power_on)

    def _power_off_and_elect(self, node: Node) -> None:
        """The machine also hosted the store's leader."""
        self._elect(node)
        self._power_off(node)

    def _crash_tree(self, node: Node) -> None:
        node.crash_tree()

    def _restart_consensus(self, node: Node) -> None:
        node.kill_consensus(self._world.between(0.03, 0.6))

    def _freeze_consensus(self, node: Node) -> None:
        node.freeze("consensus", self._long())

    def _freeze_supervisor(self, node: Node) -> None:
        self._freeze(node, ["supervisor"])

    def _freeze_guards(self, node: Node) -> None:
        """Any set of guards that leaves one running."""
        names = ["supervisor", "leash.0", "leash.1", "apps"]
        self._world.chance.shuffle(names)
        self._freeze(node, names[: self._world.chance.randrange(1, 4)])

    def _freeze_consensus_and_guards(self, node: Node) -> None:
        self._freeze_guards(node)
        self._freeze_consensus(node)

    def _freeze(self, node: Node, names: list[str]) -> None:
        guards = ["supervisor", "leash.0", "leash.1", "apps"]
        for name in names:
            others = [guard for guard in guards if guard != name and not node.is_frozen(guard)]
            # The tree's guards count only while it is up: a leash must be left through a crash of the tree.
            if any(guard.startswith("leash") for guard in others):
                node.freeze(name, self._long())

    def _freeze_podman(self, node: Node) -> None:
        node.freeze("podman", self._long())

    def _stall_whole(self, node: Node) -> None:
        node.stall_whole(self._long(), clock_stops=self._world.happens(0.5))

    # --- network and store

    def _cut(self, node: Node) -> None:
        node.link.cut_until = self._world.now + self._long()

    def _answer_late(self, node: Node) -> None:
        """A heartbeat is committed, but its sender starves before it has read the answer; then the network is gone."""
        session = node.driver.state.session if node.driver is not None else None
        if session is not None:
            at = node.clock.true(session.next_beat_at) + self._world.between(0.001, 0.01)
            self._world.at(at, node.freeze, "consensus", self._world.between(0.1, 0.75) * self._span_s)
            self._world.at(at + 0.01, self._cut, node)

    def _deafen(self, node: Node) -> None:
        node.link.deaf_until = self._world.now + self._long()

    def _blind(self, node: Node) -> None:
        node.link.blind_until = self._world.now + self._long()

    def _fool(self, node: Node) -> None:
        node.link.fooled_until = self._world.now + 2 * self._long()

    def _elect(self, _node: Node) -> None:
        for_s = self._world.between(1, 2) * self._cluster.timing.election_s
        self._cluster.store.elect(self._long() if self._world.happens(0.4) else for_s)

    def _revoke(self, node: Node) -> None:
        """A thawed old leader of the store revokes a lease that lives."""
        if node.driver is not None:
            self._cluster.store.revoke(node.driver.state.lease_id)

    def _weather(self, node: Node) -> None:
        weather = node.link.weather
        weather.lost, weather.slow, weather.odd_watch = 0.25, 0.3, 0.1
        self._world.after(self._long(), weather.calm_down)

    # --- people

    def _switch_over(self, node: Node) -> None:
        driver, world = node.driver, self._world
        if driver is None or not driver.state.terms:
            return
        resource = world.chance.choice(sorted(driver.state.terms))
        target = world.chance.choice([other for other in self._cluster.nodes if other is not node])
        give_up_at = node.clock.now() + world.between(0.2, 2) * self._span_s
        op = f"op-{world.now:.3f}"
        driver.feed(events.Switchover(resource, target.name, f"addr-{target.name}", op, Reason.SWITCHOVER, give_up_at))
        if world.happens(0.2):
            world.after(world.between(0, 0.5), driver.feed, events.CancelSwitchover(resource))

    def _release(self, node: Node) -> None:
        driver, world = node.driver, self._world
        if driver is None or not driver.state.terms:
            return
        resource = world.chance.choice(sorted(driver.state.terms))
        node.release(resource)
        world.after(world.between(0.5, 1.5) * self._span_s, self._campaign_again, node, resource)

    def _campaign_again(self, node: Node, resource: str) -> None:
        node.released.discard(resource)
        node.campaign(resource)

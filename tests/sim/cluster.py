"""A whole simulated cluster, and one seeded run of it through bad days to its convergence."""

from __future__ import annotations

import msgspec

from piccolod.leadership.timing import PROFILES, Timing
from tests.sim.blips import Blips
from tests.sim.faults import Faults
from tests.sim.network import Link, Weather
from tests.sim.node import Node
from tests.sim.oracle import Oracle
from tests.sim.rules import ALL, Rules
from tests.sim.store import Store
from tests.sim.world import Clock, World

RESOURCES = ("kernel", "app:blog", "app:photos", "app:notes")


class Result(msgspec.Struct):
    seed: int
    takeovers: int
    writes: int
    violations: list[str]
    excused: int
    rolled_back: bool


class Cluster:
    """`stop_s` is as long as the margin allows, so that a margin too small by anything is found."""

    def __init__(
        self, seed: int, rules: Rules = ALL, *, nodes: int = 3, profile: str = "fast", resources: tuple[str, ...] = RESOURCES,
    ) -> None:  # fmt: skip
        self.world = world = World(seed)
        self.rules = rules
        self.resources = resources
        timing = PROFILES[profile]
        timing = msgspec.structs.replace(timing, stop_s=timing.longest_stop_s)
        self.timing = self._with_margin(timing, rules.margin)
        self.store = store = Store(world, timing.election_s)
        self.oracle = Oracle(world, store)
        names = [f"n{number}" for number in range(1, nodes + 1)]
        self.nodes: list[Node] = []
        for rank, name in enumerate(names):
            rate = 1 + world.between(-0.5, 0.5) * timing.rate_difference
            link = Link(world, store, Weather(2 * timing.rpc_s))
            wants = {resource: 0.1 * ((rank + number) % nodes) for number, resource in enumerate(resources)}
            clock = Clock(world, world.between(0, 1000), rate)
            node = Node(world, name, link, self.oracle, self.timing, clock, rules, wants, frozenset(names))
            self.nodes.append(node)
            store.on_commit.append(lambda _transaction, _rev, link=link: link.pushed())

    @staticmethod
    def _with_margin(timing: Timing, factor: float) -> Timing:
        return msgspec.structs.replace(timing, margin_s=timing.margin_s * factor)

    def start(self) -> None:
        for node in self.nodes:
            node.power_on()

    def holder(self, resource: str) -> Node | None:
        return next((node for node in self.nodes if node.gate(resource)), None)

    def unled(self) -> list[str]:
        """What is not led, and acted for, by exactly one node."""
        found = []
        for resource in self.resources:
            holders = [node.name for node in self.nodes if node.gate(resource)]
            live = self.oracle.kernel_leaders() if resource == "kernel" else self.oracle.live(resource)
            if len(holders) != 1 or live != holders:
                found.append(f"{resource}: held by {holders}, acting {live}")
        return found


def run(
    seed: int,
    rules: Rules = ALL,
    *,
    profile: str = "fast",
    faults: int = 24,
    whole_stalls: bool = False,
    restores: bool = False,
) -> Result:
    """Bad days, then healing, then one leader for each resource within the formula."""
    restores = restores or rules.restores
    with rules.applied():
        cluster = Cluster(seed, rules, profile=profile)
        world, span_s = cluster.world, cluster.timing.span_s
        bad_days = Faults(cluster, whole_stalls=whole_stalls)
        for node in cluster.nodes:
            node.stalls, node.stall_s = 0.002, span_s
        cluster.start()
        world.run(2 * span_s)
        for number in range(faults):
            if restores and number == faults // 2:
                bad_days.restore_backup()
            bad_days.strike()
            world.run(world.now + world.between(0.1, 1.3) * span_s)
        world.run(world.now + 2.5 * span_s)
        bad_days.heal()
        for node in cluster.nodes:
            node.stalls = 0.0
        # The longest freeze is over; a session that was lost is waited for, then claimed, then started.
        world.run(world.now + 3 * span_s + cluster.timing.worst_crash_to_claim_s)
        violations = cluster.oracle.violations + [f"not converged: {one}" for one in cluster.unled()]
        oracle = cluster.oracle
        return Result(seed, oracle.takeovers, oracle.writes, violations, oracle.excused, bad_days.rolled_back)


def calm(seed: int, *, profile: str = "fast", faults: int = 20) -> dict[str, int]:
    """Only faults within the budget, one after the other; returns what was changed by them, by its name, and what was tried."""
    cluster = Cluster(seed, profile=profile)
    world, span_s = cluster.world, cluster.timing.span_s
    for node in cluster.nodes:
        node.link.weather.lost = node.link.weather.slow = 0.0
    cluster.start()
    world.run(2 * span_s)
    blips = Blips(cluster)
    before = cluster.oracle.takeovers
    for _ in range(faults):
        blips.strike()
        world.run(world.now + span_s)
    changed = {name: sum(node.counts[name] for node in cluster.nodes) for name in cluster.nodes[0].counts}
    return {**changed, "takeovers": cluster.oracle.takeovers - before, "unled": len(cluster.unled())}


def crash(seed: int, *, profile: str = "fast", with_store_leader: bool = False) -> float:
    """The machine of the kernel's leader is lost on a quiet day: seconds until the next one's gate is open."""
    cluster = Cluster(seed, profile=profile)
    world = cluster.world
    for node in cluster.nodes:
        node.link.weather.perfect()
    cluster.start()
    world.run(2 * cluster.timing.span_s + world.between(0, 2 * cluster.timing.beat_s))
    lost = cluster.holder("kernel")
    assert lost is not None
    lost.power_off()
    if with_store_leader:
        cluster.store.elect(world.between(1, 2) * cluster.timing.election_s)
    began_at = world.now
    while cluster.holder("kernel") is None:
        world.run(world.now + 0.01)
        assert world.now < began_at + 5 * cluster.timing.span_s
    return world.now - began_at

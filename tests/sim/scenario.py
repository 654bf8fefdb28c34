"""Plays a script and tells what happened, one line an event: `scenarios/<name>/script` in, `scenarios/<name>/expect` out.

nodes 3                        before all else; everything is quiet and the seed is 0
lead kernel app:blog           what every node campaigns for
members n1,n2                  the member list at first; without this line it names all
at 6.0 VERB ARGUMENTS          see `Player`
until 20.0
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from piccolod.leadership import actions, events, keys
from piccolod.leadership.actions import Action
from piccolod.leadership.roles import Reason
from piccolod.leadership.transactions import Kind
from piccolod.leadership.view import Record
from tests.sim.cluster import Cluster
from tests.sim.node import Node

SCENARIOS = Path(__file__).parent / "scenarios"


class Steady(random.Random):
    """No chance at all: everything takes its middle time, so that a script tells the same after any change elsewhere."""

    def random(self) -> float:
        return 0.5


class Player:
    """Each public method is a verb of the scripts."""

    def __init__(self, nodes: int, resources: tuple[str, ...]) -> None:
        self._cluster = Cluster(0, nodes=nodes, resources=resources)
        self._world = self._cluster.world
        self._world.chance = Steady()
        self.told: list[str] = []
        self._backup = (self._cluster.store.read(), 0)
        for node in self._cluster.nodes:
            node.link.weather.perfect()
            node.listener = self._heard
        self._cluster.oracle.listener = self._lives
        self._cluster.store.on_change.append(self._changed)

    def play(self, steps: list[tuple[float, list[str]]], until: float) -> str:
        self._cluster.start()
        for at, (verb, *arguments) in steps:
            self._world.at(at, self._do, verb, arguments)
        self._world.run(until)
        assert not self._cluster.oracle.violations, self._cluster.oracle.violations
        return "".join(f"{line}\n" for line in self.told)

    def name_members(self, names: str) -> None:
        for node in self._cluster.nodes:
            node.members = frozenset(names.split(","))

    # --- verbs

    def members(self, names: str) -> None:
        """The member list of the control store changes."""
        self.name_members(names)
        for node in self._cluster.nodes:
            self._feed(node.name, events.Members(node.members))

    def power_off(self, node: str) -> None:
        self._node(node).power_off()

    def power_on(self, node: str) -> None:
        self._node(node).power_on()

    def cut(self, node: str, for_s: str) -> None:
        self._node(node).link.cut_until = self._world.now + float(for_s)

    def deafen(self, node: str, for_s: str) -> None:
        self._node(node).link.deaf_until = self._world.now + float(for_s)

    def freeze(self, node: str, process: str, for_s: str) -> None:
        self._node(node).freeze(process, float(for_s))

    def restart_consensus(self, node: str, down_s: str) -> None:
        self._node(node).kill_consensus(float(down_s))

    def crash_tree(self, node: str) -> None:
        self._node(node).crash_tree()

    def store_down(self, for_s: str) -> None:
        self._cluster.store.elect(float(for_s))

    def revoke_lease(self, node: str) -> None:
        driver = self._node(node).driver
        assert driver is not None
        self._cluster.store.revoke(driver.state.lease_id)

    def lose(self, node: str, what: str, kind: str) -> None:
        """Loses the `request` or the `answer` of the node's next transaction of a kind."""
        self._node(node).link.swallow[Kind(kind)] = what

    def switchover(self, node: str, resource: str, to: str, within_s: str) -> None:
        give_up_at = self._node(node).clock.now() + float(within_s)
        self._feed(node, events.Switchover(resource, to, f"addr-{to}", "op-1", Reason.SWITCHOVER, give_up_at))

    def cancel(self, node: str, resource: str) -> None:
        self._feed(node, events.CancelSwitchover(resource))

    def release(self, node: str, resource: str) -> None:
        self._node(node).release(resource)

    def leave(self, node: str) -> None:
        self._feed(node, events.Leave())

    def pause(self, on: str) -> None:
        for node in self._cluster.nodes:
            self._feed(node.name, events.Pause(on == "on"))

    def back_up(self) -> None:
        self._backup = (self._cluster.store.read(), self._cluster.store.rev)

    def restore(self) -> None:
        self._cluster.store.go_back(*self._backup, self._cluster.store.cluster_id)

    def recover(self) -> None:
        store = self._cluster.store
        store.go_back(store.read(), store.rev, store.cluster_id + 1)
        store.begin_anew(2)

    # --- what is told

    def _do(self, verb: str, arguments: list[str]) -> None:
        self._say(f"-- {' '.join([verb, *arguments])}")
        getattr(self, verb)(*arguments)

    def _heard(self, node: str, action: Action) -> None:
        match action:
            case actions.Opened():
                self._say(f"{node} opens {action.resource}, epoch {action.epoch}: {action.reason}")
            case actions.Closing():
                self._say(f"{node} closes {action.resource}")
            case actions.Over():
                self._say(f"{node} leads {action.resource} no more: {action.why}")
            case actions.SessionOver():
                self._say(f"{node} has lost its session: {action.why}")
            case actions.SessionOpened():
                self._say(f"{node} has a session")
            case actions.SwitchoverFailed():
                self._say(f"{node} keeps {action.resource}")
            case actions.Alarm():
                self._say(f"{node} alarm: {action.text}")

    def _lives(self, node: str, resource: str, lives: bool) -> None:
        self._say(f"{node} {'runs' if lives else 'has stopped'} {resource}")

    def _changed(self, key: str, record: Record[Any] | None) -> None:
        if key.startswith(keys.LEAD):
            self._say(f"{key}: {record.value.node if record is not None else 'gone'}")

    def _say(self, text: str) -> None:
        self.told.append(f"{self._world.now:6.2f} {text}")

    def _node(self, name: str) -> Node:
        return next(node for node in self._cluster.nodes if node.name == name)

    def _feed(self, node: str, event: events.Event) -> None:
        driver = self._node(node).driver
        assert driver is not None
        driver.feed(event)


def play(name: str) -> str:
    nodes, resources, steps, until, members = 3, ("kernel",), [], 0.0, ""
    for line in (SCENARIOS / name / "script").read_text().splitlines():
        match line.split("#")[0].split():
            case ["nodes", number]:
                nodes = int(number)
            case ["lead", *named]:
                resources = tuple(named)
            case ["at", at, *words]:
                steps.append((float(at), words))
            case ["members", names]:
                members = names
            case ["until", at]:
                until = float(at)
            case []:
                pass
            case other:
                raise ValueError(f"{name}: {other}")
    player = Player(nodes, resources)
    if members:
        player.name_members(members)
    return player.play(steps, until)

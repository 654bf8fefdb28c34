"""Consensus of one simulated node: feeds the real core and executes its actions, as the core's docstring asks of a driver."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from piccolod.leadership import actions, core, events
from piccolod.leadership.actions import Action
from piccolod.leadership.events import Event
from piccolod.leadership.state import Config, Leadership, Life
from tests.sim.network import Link
from tests.sim.world import World

if TYPE_CHECKING:
    from tests.sim.node import Node

_TICK_OLD_S = 0.1
# Rounding must not wake a process just before what it waits for.
_AFTER_S = 1e-6


class Driver:
    """One process of consensus. It may be frozen between any two actions, and killed at any time."""

    def __init__(self, world: World, node: Node, link: Link, config: Config) -> None:
        self._world = world
        self._node = node
        self._link = link
        self.state = Leadership(config)
        self.alive = True
        self.frozen_until = -1.0
        self._events: deque[Event] = deque()
        self._actions: deque[Action] = deque()
        self._wake_at = float("inf")
        self._ticked_at = float("-inf")
        self._lease_id = 0
        self._thawing = False
        self._refused = False

    def start(self, event: events.Started) -> None:
        self._link.attach(self)
        if event.page is not None and event.page.sid:
            self._lease_id = event.page.lease_id
            self._keep_alive(self._lease_id)
        self.feed(event)

    def kill(self) -> None:
        self.alive = False

    def freeze(self, until: float) -> None:
        self.frozen_until = max(self.frozen_until, until)
        if not self._thawing:
            self._thawing = True
            self._world.at(self.frozen_until, self._thaw)

    def feed(self, event: Event) -> None:
        if not self.alive:
            return
        if self._thawing:
            self._events.append(event)
            return
        self._take(event)

    # --- feeding

    def _thaw(self) -> None:
        if self._world.now < self.frozen_until:
            self._world.at(self.frozen_until, self._thaw)
            return
        self._thawing = False
        if self.alive:
            self._execute()
        while self.alive and self._events and not self._thawing:
            self._take(self._events.popleft())
        if self.alive and not self._thawing:
            self._tick()

    def _take(self, event: Event) -> None:
        now = self._node.clock.now()
        if now - self._ticked_at > _TICK_OLD_S and not isinstance(event, events.Started):
            self._tick()
            if self._thawing or not self.alive:
                self._events.appendleft(event)
                return
        self._step(event)

    def _tick(self) -> None:
        self._ticked_at = self._node.clock.now()
        self._step(events.Tick(self._node.supervisor_at()))

    def _step(self, event: Event) -> None:
        node = self._node
        self.state, due = core.step(self.state, event, node.clock.now())
        if due:
            self._actions.extend(due)
            if self._world.happens(node.stalls):
                self._execute(self._world.chance.randrange(len(due)))
                self.freeze(self._world.now + self._world.between(0, node.stall_s))
            else:
                self._execute()
        wake_at = node.clock.true(core.wake_at(self.state)) + _AFTER_S
        if wake_at < self._wake_at:
            self._wake_at = wake_at
            self._world.at(wake_at, self._woken, wake_at)

    def _woken(self, at: float) -> None:
        if not self.alive or at != self._wake_at:
            return
        self._wake_at = float("inf")
        if self._thawing:
            return  # it ticks when it thaws
        wake_at = self._node.clock.true(core.wake_at(self.state)) + _AFTER_S
        if wake_at > self._world.now + _AFTER_S:
            self._wake_at = wake_at
            self._world.at(wake_at, self._woken, wake_at)
            return
        self._tick()

    # --- executing

    def _execute(self, most: int = 1_000_000) -> None:
        while self._actions and self.alive and most:
            self._do(self._actions.popleft())
            most -= 1
        if self._refused and not self._actions and self.alive:
            self._refused = False
            self._step(events.PageRefused())

    def _do(self, action: Action) -> None:
        node = self._node
        kind = type(action)
        if kind is actions.Send:
            self._link.send(self, action)
        elif kind is actions.WritePage:
            if not node.write_page(action.page):
                self._refused = True
        elif kind is actions.Read:
            self._link.read(self, action)
        elif kind is actions.Remember:
            node.memory = action.memory
        elif kind is actions.Prove:
            node.prove(action.resource, lambda: self.feed(events.Stopped(action.id)))
        elif kind is actions.GrantLease:
            self._world.after(0.003, self._grant, action.ttl_s)
        elif kind is actions.RevokeLease:
            self._link.revoke(action.lease_id)
        else:
            node.told(self, action)

    # --- the lease

    def _grant(self, ttl_s: float) -> None:
        if not self.alive:
            return
        lease_id = self._link.grant(ttl_s)
        if lease_id:
            self._lease_id = lease_id
            self._world.after(self._node.timing.beat_s, self._keep_alive, lease_id)
        self.feed(events.LeaseGranted(lease_id))

    def _keep_alive(self, lease_id: int) -> None:
        if not self.alive or lease_id != self._lease_id or self.state.life is Life.LEFT:
            return
        if not self._thawing and not self._link.keep_alive(lease_id):
            self._lease_id = 0
            self.feed(events.LeaseLost(lease_id))
            return
        self._world.after(self._node.timing.beat_s, self._keep_alive, lease_id)

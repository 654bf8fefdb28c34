"""What lies between a node and the store: delays, losses, answers that never come, watches that break."""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolod.leadership import events
from piccolod.leadership.actions import Read, Send
from piccolod.leadership.transactions import Kind, Outcome
from tests.sim.store import Store
from tests.sim.world import World

if TYPE_CHECKING:
    from tests.sim.driver import Driver


class Weather:
    """How bad the network is: shares of what is lost, slow (up to `slow_s` one way), sent twice, or watched out of order."""

    __slots__ = ("doubled", "jitter_s", "lost", "odd_watch", "slow", "slow_s")

    def __init__(self, slow_s: float) -> None:
        self.jitter_s = 0.004
        self.slow_s = slow_s
        self.calm_down()

    def calm_down(self) -> None:
        self.lost, self.slow, self.doubled, self.odd_watch = 0.01, 0.02, 0.01, 0.01

    def perfect(self) -> None:
        self.lost = self.slow = self.doubled = self.odd_watch = self.jitter_s = 0.0


class Link:
    """One node's way to the store. Cut: nothing passes. Deaf: requests arrive, answers do not."""

    def __init__(self, world: World, store: Store, weather: Weather) -> None:
        self._world = world
        self._store = store
        self.weather = weather
        self.cut_until = -1.0
        self.deaf_until = -1.0
        self.blind_until = -1.0
        self.fooled_until = -1.0
        self.swallow: dict[Kind, str] = {}  # the `request` or the `answer` of the next one
        self._watched_rev = 0
        self._delivering = False
        self._driver: Driver | None = None

    def attach(self, driver: Driver) -> None:
        """A process connects; its watch begins with what it reads."""
        self._driver = driver
        self._watched_rev = self._store.rev

    def send(self, driver: Driver, action: Send) -> None:
        world = self._world
        give_up_at = world.now + action.timeout_s
        swallowed = self.swallow.pop(action.transaction.kind, None)
        if swallowed == "request" or self._is_lost():
            world.at(give_up_at, driver.feed, events.Answered(action.id, Outcome.UNKNOWN, None))
            return
        if swallowed == "answer":
            world.after(self._delay(), self._again, action)
            world.at(give_up_at, driver.feed, events.Answered(action.id, Outcome.UNKNOWN, None))
            return
        arrives_at = world.now + self._delay()
        world.at(arrives_at, self._execute, driver, action, give_up_at)
        if action.transaction.kind is Kind.HEARTBEAT and world.happens(self.weather.doubled):
            world.after(self._delay() + world.between(0, self.weather.slow_s), self._again, action)

    def read(self, driver: Driver, action: Read) -> None:
        world = self._world
        give_up_at = world.now + action.timeout_s
        if self._is_lost():
            world.at(give_up_at, driver.feed, events.ReadAnswered(action.id, None, {}))
        else:
            world.after(self._delay(), self._execute_read, driver, action, give_up_at)

    def grant(self, ttl_s: float) -> int:
        return self._store.grant(ttl_s) if self._reaches() else 0

    def keep_alive(self, lease_id: int) -> bool:
        """Whether the lease is believed to live. A deposed leader of the store may say so falsely."""
        if not self._reaches() or self._world.now < self.fooled_until:
            return True
        return self._store.keep_alive(lease_id)

    def revoke(self, lease_id: int) -> None:
        if self._reaches():
            self._store.revoke(lease_id)

    def _reaches(self) -> bool:
        return self._world.now >= self.cut_until and not self._store.down()

    def pushed(self) -> None:
        """The store has committed something: deliver it soon, with all that came before."""
        if not self._delivering and self._driver is not None:
            self._delivering = True
            self._world.after(self._delay(), self._deliver)

    # --- on the way

    def _delay(self) -> float:
        world = self._world
        if world.happens(self.weather.slow):
            return world.between(0, self.weather.slow_s)
        return 0.0005 + self.weather.jitter_s * world.chance.random()

    def _is_lost(self) -> bool:
        return self._world.now < self.cut_until or self._world.happens(self.weather.lost)

    def _execute(self, driver: Driver, action: Send, give_up_at: float) -> None:
        world, store = self._world, self._store
        if store.down():
            world.at(give_up_at, driver.feed, events.Answered(action.id, Outcome.UNKNOWN, None))
            if world.happens(0.5):  # it lies in a queue of the store
                world.at(store.down_until + self._delay(), self._again, action)
            return
        outcome = store.commit(action.transaction)
        answered_at = world.now + self._delay()
        if answered_at >= give_up_at or answered_at < self.deaf_until or self._is_lost():
            world.at(give_up_at, driver.feed, events.Answered(action.id, Outcome.UNKNOWN, None))
        else:
            world.at(answered_at, driver.feed, events.Answered(action.id, outcome, store.header))

    def _again(self, action: Send) -> None:
        if not self._store.down():
            self._store.commit(action.transaction)

    def _execute_read(self, driver: Driver, action: Read, give_up_at: float) -> None:
        world, store = self._world, self._store
        answered_at = world.now + self._delay()
        if store.down() or answered_at >= give_up_at or answered_at < self.deaf_until:
            world.at(give_up_at, driver.feed, events.ReadAnswered(action.id, None, {}))
        else:
            world.at(answered_at, driver.feed, events.ReadAnswered(action.id, store.header, store.read()))

    def _deliver(self) -> None:
        world, store = self._world, self._store
        blocked_until = max(self.cut_until, self.deaf_until, self.blind_until, store.down_until)
        if world.now < blocked_until:
            world.at(blocked_until, self._deliver)
            return
        self._delivering = False
        driver, after = self._driver, self._watched_rev
        if driver is None or store.rev == after:
            return
        if store.rev < after:  # a backup was restored: this watch can never go on
            self._watched_rev = store.rev
            return
        self._watched_rev = store.rev
        if after < store.compacted:
            return  # the watch begins anew in the present
        batch = events.Watched(after, store.header, store.since(after))
        if not world.happens(self.weather.odd_watch):
            driver.feed(batch)
        elif world.happens(0.3):  # some of it is lost without a trace
            kept = tuple(change for change in batch.changes if world.happens(0.5))
            driver.feed(events.Watched(after, batch.header, kept))
        elif world.happens(0.5):  # late: what comes next overtakes it, and has a gap
            world.after(world.between(0, self.weather.slow_s), driver.feed, batch)
        else:  # twice
            driver.feed(batch)
            world.after(world.between(0, self.weather.slow_s), driver.feed, batch)

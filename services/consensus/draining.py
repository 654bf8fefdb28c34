"""A node that is to be switched off: what it leads goes to others, one after the other, and it takes nothing over.

The record in etcd is the wish, and the node's own loop follows it, however often either of them dies meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from piccolod import clock
from piccolod.errors import Busy, Conflict, NotFound, NotLeader, PiccoloError
from piccolod.leadership.placement import Standing
from piccolod.leadership.resources import RESOURCE_KERNEL, app_of
from piccolod.leadership.roles import Reason
from piccolod.leadership.state import Leadership
from piccolod.leadership.transactions import Compare, Field, Put
from piccolod.protocol.cluster import Draining, Staying
from services.consensus import placing, standing
from services.consensus.cluster_records import DRAIN, NODE, DrainRecord
from services.consensus.driver import Driver
from services.consensus.facts import Facts
from services.consensus.planned_moves import PlannedMoves
from services.consensus.refusals import Refusals

_LOOK_S: Final = 1.0
_SEEN_S: Final = 1.0
# A move that was begun and failed has stopped its app for a while: it is not tried again at once, and each time later.
_AGAIN_S: Final = 60.0
_AGAIN_MOST_S: Final = 3600.0

Own = Mapping[str, Standing]


class Failed(NamedTuple):
    """A move that was not done, and when it is tried again."""

    why: str
    wait_s: float
    again_at: float


class Drainer:
    def __init__(
        self, driver: Driver, node: str, moves: PlannedMoves, refusals: Refusals, own: Callable[[], Own], log: Any
    ) -> None:
        """`own`: how this node stands to each app."""
        self._driver = driver
        self._node = node
        self._moves = moves
        self._refusals = refusals
        self._own = own
        self._log = log
        self._failed: dict[str, Failed] = {}

    async def order(self, node: str, on: bool, author: str) -> None:
        """Any member may say it of any. The same again changes nothing."""
        facts = self._driver.facts
        if not facts.known:
            raise self._refusals.no_leader(RESOURCE_KERNEL)
        if node not in facts.nodes and (on or node not in facts.drained):
            raise NotFound(f"there is no node {node[:80]!r}", hint="`piccoloctl nodes list` shows all")
        if facts.is_witness(node):
            raise Conflict(f"{node} is a witness: it leads nothing", hint="it can be switched off as it is")
        if (node in facts.drained) is on:
            return
        others = _others(self._driver.state, facts, node)
        if on and not others:
            hint = "`piccoloctl nodes list` shows who is alive, `piccoloctl nodes undrain` ends a drain"
            raise Conflict(f"no other node is alive to take over what {node} leads", hint=hint)
        if on:
            # Nobody takes the node out meanwhile, and of two drains at once one is told of the other.
            listed = Compare(NODE + node, Field.VALUE, None, equal=False)
            undrained = (Compare(DRAIN + other, Field.VALUE, None) for other in others)
            record = DrainRecord(author, clock.wall_ms())
            await self._moves.note((Put(DRAIN + node, record),), compares=(listed, *undrained))
        else:
            await self._moves.note(deletes=(DRAIN + node,))
        await self._driver.until(lambda: (node in self._driver.facts.drained) is on, _SEEN_S)

    def of(self, node: str) -> Draining | None:
        """How far a node is; None: it is not drained."""
        state, facts = self._driver.state, self._driver.facts
        record = facts.drained.get(node)
        if record is None:
            return None
        stays = left(state, facts, self._own(), node)
        if node == self._node:
            stays = tuple(self._with_failure(each) for each in stays)
        return Draining(author=record.author, since_ms=record.since_ms, left=stays)

    def _with_failure(self, each: Staying) -> Staying:
        failed = self._failed.get(each.resource)
        if failed is None or each.reason:
            return each
        again_s = max(0.0, failed.again_at - clock.now())
        return Staying(resource=each.resource, reason=f"{failed.why}; it is tried again in {again_s:.0f} s")

    async def run(self) -> None:
        """For as long as the process lives."""
        driver = self._driver
        while True:
            await driver.until(self._has_work)
            for each in left(driver.state, driver.facts, self._own(), self._node):
                failed = self._failed.get(each.resource)
                if not each.reason and (failed is None or failed.again_at <= clock.now()) and self._has_work():
                    await self._move(each.resource)
            if await driver.until(lambda: not self._is_drained(), _LOOK_S):
                self._failed = {}

    def _is_drained(self) -> bool:
        return self._node in self._driver.facts.drained

    def _has_work(self) -> bool:
        return self._is_drained() and bool(self._driver.state.terms) and not self._driver.facts.paused

    async def _move(self, resource: str) -> None:
        try:
            await self._moves.hand_over(resource, "", Reason.DRAIN)
        except (Busy, NotLeader) as error:  # it is moving already
            self._log.debug("could not drain yet", resource=resource, reason=error.detail)
        except PiccoloError as error:
            before = self._failed.get(resource)
            wait_s = _AGAIN_S if before is None else min(2 * before.wait_s, _AGAIN_MOST_S)
            self._failed[resource] = Failed(error.detail, wait_s, clock.now() + wait_s)
            self._log.warning("could not drain", resource=resource, reason=error.detail, again_in_s=wait_s)
        else:
            self._failed.pop(resource, None)
            self._log.info("drained", resource=resource)


def left(state: Leadership, facts: Facts, own: Own, node: str) -> tuple[Staying, ...]:
    """What the node still leads, the kernel last, and why no other node could; empty where one can. Pure."""
    held = sorted(name for name in state.view.epochs if standing.holder(state, name) == node)
    held.sort(key=lambda name: name == RESOURCE_KERNEL)
    return tuple(Staying(resource=name, reason=_stuck(state, facts, own, name, node)) for name in held)


def _stuck(state: Leadership, facts: Facts, own: Own, resource: str, node: str) -> str:
    if facts.paused:
        return "the cluster is paused: nothing moves"
    app = app_of(resource)
    found = standing.candidates(state, facts) if app is None else placing.candidates(state, facts, own, app)
    others = [each for each in found if each.node != node]
    if any(each.eligible for each in others):
        return ""
    return "; ".join(f"{each.node}: {each.reason}" for each in others) or "there is no other node"


def _others(state: Leadership, facts: Facts, node: str) -> list[str]:
    """Those that are alive and could take over."""
    names = (name for name in facts.nodes if name != node and not facts.is_witness(name))
    return [name for name in names if name in state.view.sessions and name not in facts.drained]

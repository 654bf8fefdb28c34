"""What a person or a leaving node asks for: the kernel to another node, and nothing to move for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from piccolod import clock
from piccolod.errors import Busy, Conflict, Exists, NoLeader, NotFound, NotSupported, OutcomeUnknown
from piccolod.leadership import events, transactions
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.roles import Reason
from piccolod.leadership.transactions import Kind, Outcome, Put, Transaction
from services.consensus import standing
from services.consensus.cluster_records import PAUSE, PauseRecord
from services.consensus.driver import Driver
from services.consensus.leaser import Place
from services.consensus.refusals import Refusals

# Longer than its callers' patience for parked writes: then it is taken back.
_SWITCHOVER_S: Final = 2.0
_ANSWERED_S: Final = 4.0  # from there until its caller is told that it takes longer
_SEEN_S: Final = 1.0


class PlannedMoves:
    def __init__(self, driver: Driver, node: str, place: Callable[[str], Place], refusals: Refusals) -> None:
        self._driver = driver
        self._node = node
        self._place = place
        self._refusals = refusals
        self._moves: dict[str, asyncio.Future[str]] = {}

    async def hand_over(self, resource: str, to: str, reason: Reason) -> None:
        driver = self._driver
        if resource != RESOURCE_KERNEL:
            raise NotSupported(f"{resource} stays on its node: placement is not there yet", hint="only `kernel` moves")
        if to and to not in driver.facts.nodes:
            raise NotFound(f"there is no node {to}", hint="`piccoloctl cluster list` shows them")
        if to and standing.holder(driver.state, resource) == to:
            raise Exists(f"{to} leads {resource} already", hint="`piccoloctl leaders list` shows who leads")
        if not standing.leads(driver.state, resource):
            raise self._refusals.not_leader(resource)
        if driver.facts.paused:
            raise Conflict("the cluster is paused: nothing moves", hint="`piccoloctl cluster resume`")
        self.check_stays(resource)
        to = to or standing.best_candidate(driver.state, driver.facts)
        why = standing.unfit(driver.state, driver.facts, to) if to else "no other node could lead it now"
        if why:
            raise Conflict(f"{to or resource}: {why}", hint="`piccoloctl leaders show kernel` tells it of each node")
        await self._move(resource, to, reason)

    async def _move(self, resource: str, to: str, reason: Reason) -> None:
        driver, op = self._driver, f"{self._node}-{clock.now_ns()}"
        move = self._moves[resource] = asyncio.get_running_loop().create_future()
        try:
            place = self._place(to)
            driver.feed(events.Switchover(resource, to, place.address, op, reason, clock.now() + _SWITCHOVER_S))
            async with asyncio.timeout(_SWITCHOVER_S + _ANSWERED_S):
                failed = await move
        except TimeoutError:
            raise OutcomeUnknown(
                f"etcd does not say whether {to} has {resource}", hint="see `piccoloctl leaders list`"
            ) from None
        finally:
            del self._moves[resource]
        if failed:
            raise Conflict(f"{resource} stays here: {failed}", hint="try again, or choose another node")
        await driver.until(lambda: standing.holder(driver.state, resource) == to, _SEEN_S)

    async def pause(self, on: bool, author: str) -> None:
        """By a record that every node watches. Any member may write it: who led may be gone, and stay so until it resumes."""
        state = self._driver.state
        if state.session is None or not self._refusals.fresh():
            raise self._refusals.no_leader(RESOURCE_KERNEL)
        record = PauseRecord(author, clock.wall_ms())
        puts, deletes = ((Put(PAUSE, record),), ()) if on else ((), (PAUSE,))
        guard = (transactions.same_session(self._node, state.session.sid), transactions.same_gen(state.session.gen))
        done = await self._driver.put(Transaction(Kind.RECORD, guard, puts, deletes))
        if done.outcome is Outcome.REFUSED:
            raise NoLeader("this node has lost its session meanwhile", hint="try again in a moment")
        if done.error is not None:
            raise done.error
        await self._driver.until(lambda: self._driver.state.paused is on, _SEEN_S)

    def check_stays(self, resource: str) -> None:
        if resource in self._moves:
            raise Busy(f"{resource} is being handed over", hint="try again in a moment")

    def ended(self, resource: str, failed: str) -> None:
        """Tells whoever waits for a move how it ended: with what failed, or with ""."""
        move = self._moves.get(resource)
        if move is not None and not move.done():
            move.set_result(failed)

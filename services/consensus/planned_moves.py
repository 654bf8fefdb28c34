"""What a person or a leaving node asks for: the kernel or an app to another node, and nothing to move for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from piccolod import clock
from piccolod.errors import Busy, Conflict, Exists, NoLeader, NotFound, OutcomeUnknown
from piccolod.leadership import events, transactions
from piccolod.leadership.placement import Standing
from piccolod.leadership.resources import RESOURCE_KERNEL, app_of
from piccolod.leadership.roles import Reason
from piccolod.leadership.transactions import Compare, Kind, Outcome, Put, Transaction
from services.consensus import placing, standing
from services.consensus.cluster_records import PAUSE, PauseRecord
from services.consensus.driver import Driver
from services.consensus.leaser import Place
from services.consensus.refusals import Refusals

# Longer than its callers' patience for parked writes: then it is taken back.
_SWITCHOVER_S: Final = 2.0
# An app gets its manifest's grace to stop, and is then killed.
APP_STOPS_S: Final = 30.0
_ANSWERED_S: Final = 4.0  # from there until its caller is told that it takes longer
_SEEN_S: Final = 1.0


class PlannedMoves:
    def __init__(
        self,
        driver: Driver,
        node: str,
        place: Callable[[str], Place],
        refusals: Refusals,
        own: Callable[[], Mapping[str, Standing]],
    ) -> None:
        """`own`: how this node stands to each app."""
        self._own = own
        self._driver = driver
        self._node = node
        self._place = place
        self._refusals = refusals
        self._moves: dict[str, asyncio.Future[str]] = {}

    async def hand_over(self, resource: str, to: str, reason: Reason) -> None:
        driver = self._driver
        if to and to not in driver.facts.nodes:
            raise NotFound(f"there is no node {to}", hint="`piccoloctl cluster list` shows them")
        if to and standing.holder(driver.state, resource) == to:
            raise Exists(f"{to} leads {resource} already", hint="`piccoloctl leaders list` shows who leads")
        if not standing.leads(driver.state, resource):
            raise self._refusals.not_leader(resource)
        if driver.facts.paused:
            raise Conflict("the cluster is paused: nothing moves", hint="`piccoloctl cluster resume`")
        self.check_stays(resource)
        to, why = self._target(resource, to)
        if why:
            raise Conflict(f"{to or resource}: {why}", hint=f"`piccoloctl leaders show {resource}` tells it of each node")
        await self._move(resource, to, reason)

    def _target(self, resource: str, to: str) -> tuple[str, str]:
        """The node, and why it cannot be that one."""
        state, facts = self._driver.state, self._driver.facts
        if (app := app_of(resource)) is not None:
            able = placing.able(state, facts, self._own(), app)
            to = to or next((name for name in able if name != self._node), "")
            why = next((each.reason for each in placing.candidates(state, facts, self._own(), app) if each.node == to), "")
            return to, "" if to in able else why or "no other node could lead it now"
        to = to or standing.best_candidate(state, facts)
        return to, standing.unfit(state, facts, to) if to else "no other node could lead it now"

    async def _move(self, resource: str, to: str, reason: Reason) -> None:
        driver, op = self._driver, f"{self._node}-{clock.now_ns()}"
        move = self._moves[resource] = asyncio.get_running_loop().create_future()
        try:
            place = self._place(to)
            patience_s = _SWITCHOVER_S if resource == RESOURCE_KERNEL else APP_STOPS_S
            driver.feed(events.Switchover(resource, to, place.address, op, reason, clock.now() + patience_s))
            async with asyncio.timeout(patience_s + _ANSWERED_S):
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
        record = PauseRecord(author, clock.wall_ms())
        if on:
            await self.note((Put(PAUSE, record),))
        else:
            await self.note(deletes=(PAUSE,))
        await self._driver.until(lambda: self._driver.state.paused is on, _SEEN_S)

    async def note(self, puts: tuple[Put, ...] = (), deletes: tuple[str, ...] = (), compares: tuple[Compare, ...] = ()) -> None:
        """Puts and deletes records that any member in session may write. Conflict where one of `compares` fails."""
        state = self._driver.state
        if state.session is None or not self._refusals.fresh():
            raise self._refusals.no_leader(RESOURCE_KERNEL)
        guard = (transactions.same_session(self._node, state.session.sid), transactions.same_gen(state.session.gen))
        done = await self._driver.put(Transaction(Kind.RECORD, (*guard, *compares), puts, deletes))
        if done.outcome is Outcome.REFUSED and compares:
            raise Conflict("other nodes, or this one's session, changed meanwhile", hint="look again, and try again")
        if done.outcome is Outcome.REFUSED:
            raise NoLeader("this node has lost its session meanwhile", hint="try again in a moment")
        if done.error is not None:
            raise done.error

    def check_stays(self, resource: str) -> None:
        if resource in self._moves:
            raise Busy(f"{resource} is being handed over", hint="try again in a moment")

    def ended(self, resource: str, failed: str) -> None:
        """Tells whoever waits for a move how it ended: with what failed, or with ""."""
        move = self._moves.get(resource)
        if move is not None and not move.done():
            move.set_result(failed)

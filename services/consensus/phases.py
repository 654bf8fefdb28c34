"""How long a change of leadership took, to its end: its record is of its very transaction, which is too early.

So the new leader writes the record once more, under its token: of the kernel when its term is open, of an app when clients
reach it. Where that fails the record says less and nothing false: `claimed` until CLAIM was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from piccolod import clock
from piccolod.errors import PiccoloError
from piccolod.leadership import keys, transactions
from piccolod.leadership.actions import Opened
from piccolod.leadership.records import ChangeRecord
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.transactions import Kind, Put, Transaction
from services.consensus import wire
from services.consensus.driver import Driver
from services.consensus.etcd.transaction import Range

_READ_S: Final = 2.0
# In this order one follows the other; what is not there took no time.
OF_APPS: Final = ("attached", "started", "ready", "routed")


class _Begun(NamedTuple):
    opened: Opened
    at: float


class Phases:
    """Of the terms that began in this life of the module. `spawn` runs what writes beside everything else."""

    def __init__(self, driver: Driver, spawn: Callable[..., Any], log: Any) -> None:
        self._driver = driver
        self._spawn = spawn
        self._log = log
        self._begun: dict[str, _Begun] = {}  # of apps, until they are told

    def opened(self, opened: Opened) -> None:
        if opened.resource == RESOURCE_KERNEL:
            if opened.took_s:
                self._spawn(self._write(opened, {}), name="phases")
        elif opened.took_s:
            self._begun[opened.resource] = _Begun(opened, clock.now())
        else:  # the same term goes on, or nobody saw how it came about
            self._begun.pop(opened.resource, None)

    def over(self, resource: str) -> None:
        self._begun.pop(resource, None)

    async def tell(self, resource: str, token: int, at: Mapping[str, float]) -> None:
        """`at`: moments of CLOCK_BOOTTIME by phase."""
        begun = self._begun.get(resource)
        if begun is not None and begun.opened.token == token:
            del self._begun[resource]
            await self._write(begun.opened, durations_ms(begun.at, at))

    async def _write(self, opened: Opened, later: Mapping[str, float]) -> None:
        """Best effort."""
        driver, key = self._driver, f"{keys.HISTORY}{opened.resource}/{opened.epoch}"
        session = driver.state.session
        try:
            found, _ = await driver.store.client.find(Range(driver.store.prefix + key), _READ_S)
            change = wire.decode(key, found.keys[0].value) if found.keys else None
            if not isinstance(change, ChangeRecord) or session is None:
                return
            whole = msgspec.structs.replace(change, phases={**complete(change, opened.took_s), **later})
            guard = (
                *transactions.same_token(opened.resource, opened.token),
                transactions.same_session(driver.state.config.node, session.sid),
            )
            done = await driver.put(Transaction(Kind.RECORD, guard, (Put(key, whole),)))
            if done.error is not None:
                raise done.error
        except PiccoloError as error:
            self._log.debug(
                "could not tell how long a change took", resource=opened.resource, epoch=opened.epoch, reason=error.detail
            )


def complete(change: ChangeRecord, took_s: float) -> dict[str, float]:
    """`took_s`: from the vacancy, or the offer, until the term was open.

    A term that was handed over was closed right after the offer, and its former holder said for how long: the rest is the way
    here. Both clocks run; neither is compared with the other.
    """
    closing_ms = change.phases.get("closing", 0.0)
    return {**change.phases, "claimed": round(max(0.0, took_s * 1000 - closing_ms), 3)}


def durations_ms(since: float, at: Mapping[str, float]) -> dict[str, float]:
    """From moments that follow each other; one that is before the last counts as that. Pure."""
    found: dict[str, float] = {}
    for phase in OF_APPS:
        if phase in at:
            found[phase] = round(max(0.0, at[phase] - since) * 1000, 3)
            since = max(since, at[phase])
    return found

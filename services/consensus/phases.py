"""How long a change of the kernel's leadership took, to its end: its record is of its very transaction, which is too early.

So the new leader writes the record once more, under its token, when its term is open. Where that fails the record says less and
nothing false: `claimed` until CLAIM was sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from piccolod.errors import PiccoloError
from piccolod.leadership import keys
from piccolod.leadership.actions import Opened
from piccolod.leadership.records import ChangeRecord
from piccolod.leadership.transactions import Compare, Put
from services.consensus import wire
from services.consensus.etcd.transaction import Range
from services.consensus.etcd_store import EtcdStore

_READ_S: Final = 2.0

Propose = Callable[[int, tuple[Compare, ...], tuple[Put, ...]], Awaitable[int]]


async def tell(opened: Opened, store: EtcdStore, propose: Propose, log: Any) -> None:
    """Best effort."""
    key = f"{keys.HISTORY}{opened.resource}/{opened.epoch}"
    try:
        found, _ = await store.client.find(Range(store.prefix + key), _READ_S)
        change = wire.decode(key, found.keys[0].value) if found.keys else None
        if isinstance(change, ChangeRecord):
            whole = msgspec.structs.replace(change, phases=complete(change, opened.took_s))
            await propose(opened.token, (), (Put(key, whole),))
    except PiccoloError as error:
        log.debug("could not tell how long a change took", resource=opened.resource, epoch=opened.epoch, reason=error.detail)


def complete(change: ChangeRecord, took_s: float) -> dict[str, float]:
    """`took_s`: from the vacancy, or the offer, until the term was open.

    A term that was handed over was closed right after the offer, and its former holder said for how long: the rest is the way
    here. Both clocks run; neither is compared with the other.
    """
    closing_ms = change.phases.get("closing", 0.0)
    return {**change.phases, "claimed": round(max(0.0, took_s * 1000 - closing_ms), 3)}

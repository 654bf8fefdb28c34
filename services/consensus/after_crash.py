"""The end of this node's session by somebody else than its consensus, which is dead: the last act of `piccolod --after-crash`.

Whoever calls has shut the page and proven what it says to be stopped. So every sid of this boot, and every token of such a
session, is dead for ever, also those that etcd shows and the page never did, and an unknown outcome harms nobody: RELEASE and
END compare exactly these, and may commit at any later time, in any order, also beside the next session, which has another sid
and other tokens. A session of another boot is of another machine that has this name by now: nothing of it is touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from piccolod import clock, cluster_mode
from piccolod.config import Etcd
from piccolod.errors import Invalid, PiccoloError, StoreRestored
from piccolod.leadership import keys, transactions
from piccolod.leadership.actions import RESTORED_HINT
from piccolod.leadership.events import Memory
from piccolod.leadership.keys import GenRecord
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.roles import Reason
from piccolod.leadership.timing import Timing
from piccolod.leadership.transactions import Outcome, Transaction
from piccolod.paths import Paths
from services.consensus import access, cluster_records, members_file
from services.consensus.etcd.stubs import RANGE
from services.consensus.etcd.transaction import Range
from services.consensus.etcd_store import EtcdStore, Snapshot
from services.consensus.memory import MemoryFile

_PAUSE_S: Final = 0.02


def release(paths: Paths, unproven: frozenset[str], etcd: Etcd | None = None) -> str:
    """Releases what this node holds, but for `unproven`, and ends its session if all is proven. What was done, as a sentence.

    `etcd`: of the configuration, for a cluster whose etcd its owner keeps. Raises PiccoloError: then nothing was released.
    """
    return asyncio.run(_release(paths, unproven, etcd or Etcd()))


def leads_on(paths: Paths) -> bool:
    """Whether the member of etcd on the other node answers with a quorum: it leads by itself then, or never will."""
    return asyncio.run(_leads_on(paths))


async def _leads_on(paths: Paths) -> bool:
    try:
        timing = members_file.timing_of(paths)
        others = access.managed(paths, members_file.read(paths), local=False)
    except PiccoloError:
        return False
    client, question = others.client(timing.rpc_s), Range(keys.GEN).request()
    try:
        asked = (client.ask(each, RANGE, question, timing.rpc_s) for each in others.endpoints)
        answers = await asyncio.gather(*asked, return_exceptions=True)
    finally:
        await client.close()
    return any(not isinstance(each, BaseException) for each in answers)


def budget_s(timing: Timing) -> float:
    """For all of it. This node's member of etcd died too: if it led, the others elect first, within two election timeouts."""
    return 2 * timing.election_s + 2 * timing.rpc_s


async def _release(paths: Paths, unproven: frozenset[str], etcd: Etcd) -> str:
    mode = cluster_mode.load(paths.cluster)
    if mode is None:
        raise Invalid(f"{paths.cluster} names no cluster")
    timing = members_file.timing_of(paths)
    give_up_at = clock.now() + budget_s(timing)
    others = access.external(paths, etcd) if mode.is_external else access.managed(paths, members_file.read(paths), local=False)
    store = EtcdStore(others.client(timing.rpc_s), cluster_records.prefix(mode.cluster))
    try:
        seen = await store.read(budget_s(timing))
        _believe(seen, MemoryFile(paths.cluster / "seen.json").read())
        session = _own_session(seen, mode.node, clock.boot_id())
        if session is None:
            return "released nothing: no session of this boot is left in etcd"
        terms = {resource: due for resource, due in _terms(seen, mode.node, session) if resource not in unproven}
        known = await asyncio.gather(*(_commit(store, due, timing.rpc_s, give_up_at) for due in terms.values()))
        released = [resource for resource, is_known in zip(terms, known, strict=True) if is_known]
        end = transactions.end(mode.node, session)
        ended = not unproven and await _commit(store, end, timing.rpc_s, give_up_at)
    finally:
        await store.client.close()
    return _said(released, sorted({*terms} - {*released}), sorted(unproven), ended=ended)


def _believe(seen: Snapshot, memory: Memory | None) -> None:
    """Rule 5 of leadership.md: in another etcd the same revisions are the tokens of others."""
    gen = seen.records.get(keys.GEN)
    if (
        memory is None
        or memory.restored
        or seen.header.cluster_id != memory.cluster_id
        or seen.header.rev < memory.rev
        or gen is None
        or gen.value != GenRecord(memory.gen, memory.cluster_id)
    ):
        raise StoreRestored("etcd is not the one that this node knew", hint=RESTORED_HINT)


def _own_session(seen: Snapshot, node: str, boot_id: str) -> int | None:
    """The sid of the session that this machine began in this boot; None when it is over, or the name is another's."""
    record = seen.records.get(keys.SESSION + node)
    return record.create if record is not None and record.value.boot_id == boot_id else None


def _terms(seen: Snapshot, node: str, sid: int) -> Iterable[tuple[str, Transaction]]:
    """The kernel first: others wait for it."""
    for key in sorted(seen.records, key=lambda key: (key != keys.EPOCH + RESOURCE_KERNEL, key)):
        record = seen.records[key]
        if key.startswith(keys.EPOCH) and record.value.held and (record.value.node, record.value.sid) == (node, sid):
            resource = key.removeprefix(keys.EPOCH)
            yield resource, transactions.release(resource, record.mod, record.value, Reason.EXPIRED, {})


async def _commit(store: EtcdStore, transaction: Transaction, rpc_s: float, give_up_at: float) -> bool:
    """Whether it is known to be over: committed, or somebody else was first."""
    while (left_s := give_up_at - clock.now()) > 0:
        attempt = await store.commit(transaction, min(rpc_s, left_s))
        if attempt.outcome in (Outcome.COMMITTED, Outcome.REFUSED):
            return True
        await asyncio.sleep(_PAUSE_S)
    return False


def _said(released: list[str], unknown: list[str], unproven: list[str], *, ended: bool) -> str:
    parts = [f"released {', '.join(released) or 'nothing'}"]
    if unknown:
        parts.append(f"etcd did not say whether {', '.join(unknown)} is released")
    if unproven:
        parts.append(f"not released, for something of it may live: {', '.join(unproven)}")
    parts.append("ended the session" if ended else "the session runs out by itself")
    return "; ".join(parts)

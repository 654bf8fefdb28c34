"""An etcd that its owner keeps: looked at before this node hangs on it, cleared of a cluster that was not founded after all.

What a crash of `cluster init` leaves there is no member's to believe: `founding` below the cluster's prefix has the mark of the
attempt, whose other half is `state_dir/cluster/draft.json` until the node is a member. Only who has the mark takes it away.
"""

from __future__ import annotations

import asyncio
from typing import Final

from piccolod import clock
from piccolod.config import Etcd
from piccolod.errors import Conflict, Invalid, OutcomeUnknown, PiccoloError, StoreFull, StoreUnavailable
from piccolod.leadership import keys
from piccolod.paths import Paths
from piccolod.protocol.cluster import KnownMember
from services.consensus import access, cluster_records, wire
from services.consensus.etcd import status
from services.consensus.etcd.client import Client
from services.consensus.etcd.status import Status
from services.consensus.etcd.transaction import Delete, Put, Transaction, absent, present, value
from services.consensus.joining.folder import Draft

FOUNDING: Final = "founding"

RPC_S: Final = 2.0
_OLDEST: Final = (3, 4)
_COMMITS: Final = 20  # the slowest of them stands for the 99th percentile
_AGAIN_S: Final = 0.2
_GIVE_UP_S: Final = 5.0
_SEE: Final = "see [etcd] in the configuration: endpoints, ca, cert and key"


async def look(paths: Paths, etcd: Etcd) -> int:
    """The id of the etcd, once every endpoint of it would do.

    Raises StoreUnavailable for one that does not answer or sees no leader, StoreFull, Invalid for one that is too old or of
    another etcd than the rest.
    """
    found = access.external(paths, etcd)
    client = found.client(RPC_S)
    try:
        told = [(endpoint, await _told(client, endpoint)) for endpoint in found.endpoints]
        _check(told)
        await _check_alarms(client)
        return told[0][1].header.cluster_id
    finally:
        await client.close()


async def claim(client: Client, draft: Draft) -> float:
    """Puts the mark, and returns what a commit takes there. Raises Conflict where this very cluster lives already."""
    prefix, mark = cluster_records.prefix(draft.cluster), draft.mark.encode()
    key = prefix + FOUNDING
    free = (absent(prefix + keys.GEN), absent(key))
    if not (await client.transact(Transaction(free, (Put(key, mark),)), RPC_S)).succeeded:
        raise Conflict(
            f"this etcd holds the cluster {draft.cluster} already: of a copy of this node, or of an attempt whose disk is lost",
            hint=f"if no node is a member of it any more: `etcdctl del --prefix {prefix}`, then try again",
        )
    took = []
    for _ in range(_COMMITS):
        began_at = clock.now()
        await client.transact(Transaction((), (Put(key, mark),)), RPC_S)
        took.append(clock.now() - began_at)
    return max(took)


async def settle(client: Client, draft: Draft) -> None:
    """The cluster is founded: the mark goes. Raises PiccoloError; one that stays harms nothing, for its other half is gone."""
    key = cluster_records.prefix(draft.cluster) + FOUNDING
    await client.transact(Transaction((value(key, draft.mark.encode()),), (Delete(key),)), RPC_S)


async def forget(draft: Draft, paths: Paths, etcd: Etcd) -> None:
    """Takes away what there is of a cluster that was not founded. Nothing, where the mark is another one.

    Raises StoreUnavailable when that cannot be done now.
    """
    client = access.external(paths, etcd).client(RPC_S)
    prefix = cluster_records.prefix(draft.cluster)
    ours = Transaction((value(prefix + FOUNDING, draft.mark.encode()),), (Delete(prefix, prefix=True),))
    give_up_at = clock.now() + _GIVE_UP_S
    try:
        while True:
            try:
                await client.transact(ours, RPC_S)
                return
            except (OutcomeUnknown, StoreUnavailable) as error:
                if clock.now() + _AGAIN_S > give_up_at:
                    raise StoreUnavailable(f"what was begun in etcd is still there: {error.detail}", hint=_SEE) from error
            await asyncio.sleep(_AGAIN_S)
    finally:
        await client.close()


async def enter(paths: Paths, etcd: Etcd, cluster: str, node: str, record: KnownMember) -> None:
    """Whether this node finds the cluster that let it in, and may write there: it says once more where it is found.

    Raises Conflict: the name is taken there by now, whatever kept this node from it.
    """
    client, prefix = access.external(paths, etcd).client(RPC_S), cluster_records.prefix(cluster)
    own = Put(prefix + cluster_records.NODE + node, wire.encode(record))
    try:
        there = await client.transact(Transaction((present(prefix + keys.GEN), present(own.key)), (own,)), RPC_S)
        why = "" if there.succeeded else "it is not there"
    except PiccoloError as error:
        why = error.detail
    finally:
        await client.close()
    if why:
        raise Conflict(
            f"this node does not get at the cluster {cluster} that let it in: {why}",
            hint=f"{_SEE}, then the same command with the same token; to give up, `piccoloctl nodes remove {node}` on a member",
        )


async def _told(client: Client, endpoint: str) -> Status:
    try:
        return await status.status(client, endpoint)
    except StoreUnavailable as error:
        raise StoreUnavailable(error.detail, hint=_SEE) from error


def _check(told: list[tuple[str, Status]]) -> None:
    first, one = told[0]
    for endpoint, each in told:
        if _version(each.version) < _OLDEST:
            raise Invalid(
                f"etcd at {endpoint} is of version {each.version}, and {_named(_OLDEST)} is the oldest that will do",
                hint="upgrade it",
            )
        if not each.leader_id:
            raise StoreUnavailable(f"etcd at {endpoint} sees no leader: it has no quorum", hint="see its log")
        if each.header.cluster_id != one.header.cluster_id:
            raise Invalid(f"etcd at {endpoint} is another one than that at {first}", hint=_SEE)


async def _check_alarms(client: Client) -> None:
    """Each such question goes through a quorum."""
    try:
        raised = await status.alarms(client, RPC_S)
    except StoreUnavailable as error:
        raise StoreUnavailable(f"etcd has no quorum, it seems: {error.detail}", hint="see its log") from error
    except PiccoloError:
        return  # its owner shows them to nobody
    if raised:
        names = ", ".join(sorted({alarm.name for alarm in raised}))
        raise StoreFull(f"etcd has the alarm {names}", hint="its owner has to compact, defragment and disarm it")


def _version(text: str) -> tuple[int, ...]:
    """`3.4.23` as (3, 4); nothing that can be read is older than all."""
    parts = text.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()


def _named(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)

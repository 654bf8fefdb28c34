"""Who is in the cluster: shown, let in, made a voter, taken out. Changes are made on the kernel's leader alone.

A second node stays a learner of etcd, for its loss must not stop the first: it becomes a voter when a third comes (or a
witness), which is then a learner itself until it is in sync. So there are two voters only for the time of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from piccolod import clock, etcd_conf
from piccolod.errors import Busy, Conflict, Exists, Invalid, NotFound, OutcomeUnknown, PiccoloError, StoreUnavailable
from piccolod.leadership import keys
from piccolod.leadership.keys import EpochRecord, SessionRecord
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.timing import founded
from piccolod.protocol.cluster import AddMember, Admission, Cluster, KnownMember, Member, Timing
from services.consensus import cluster_records, seed, wire
from services.consensus.etcd import members as etcd_members
from services.consensus.etcd import status as etcd_status
from services.consensus.etcd.client import Client
from services.consensus.etcd.members import Member as Peer
from services.consensus.etcd.transaction import Delete, Range, Transaction
from services.consensus.joining.folder import Folder

_LOOK_S: Final = 1.0
_RPC_S: Final = 2.0
_CHANGE_S: Final = 30.0  # etcd refuses a change within 5 s of the last one, and a learner has to catch up
_AGAIN_S: Final = 0.2
_ENDED_S: Final = 8.0  # a session of the faster profiles ends within that; who asks gives up after 45 s

T = TypeVar("T")


class Membership:
    """`leads()`: whether this node leads the kernel now. `external`: etcd is its owner's, who alone changes its members."""

    def __init__(
        self, client: Client, prefix: str, folder: Folder, node: str, leads: Callable[[], bool], log: Any, *,
        external: bool = False,
    ) -> None:  # fmt: skip
        self._client = client
        self._prefix = prefix
        self._folder = folder
        self._node = node
        self._leads = leads
        self._log = log
        self._external = external
        self._turn = asyncio.Lock()

    # --- shown

    async def cluster(self, cluster: str) -> Cluster:
        """Raises StoreUnavailable."""
        peers = await self._peers()
        records = await self.records()
        sessions: dict[str, SessionRecord] = await self._below(keys.SESSION)
        kernel: EpochRecord | None = (await self._below(keys.EPOCH)).get(RESOURCE_KERNEL)
        shown = tuple(
            _member(name, record, peer_with(name, record, peers, records), sessions.get(name), kernel)
            for name, record in records.items()
        )
        return Cluster(
            mode="etcd", node=self._node, cluster=cluster, profile=self._folder.timing().profile, members=shown,
            warnings=tuple(warnings(peers)), etcd="external" if self._external else "managed",
        )  # fmt: skip

    async def records(self) -> dict[str, KnownMember]:
        """Raises StoreUnavailable."""
        return dict(sorted((await self._below(cluster_records.NODE)).items()))

    # --- let in

    async def add(self, request: AddMember, cluster: str) -> Admission:
        record = KnownMember(
            address=request.address, client_url=request.client_url, rpc=request.rpc, role=request.role, api_url=request.api_url
        )
        if request.role == cluster_records.MEMBER:
            check_stop(request.node, self._folder.timing(), request.stop_s)
        await patiently(lambda: self._check_ended(request.node), f"{request.node} cannot be let in yet", _ENDED_S)
        etcd_id = await self._check_etcd(request)
        async with self._turn:
            others = await self.records()
            check_free(request.node, record, others)
            # The record first: whatever is left of a join that goes no further, `remove` finds it by that.
            await seed.put_node(self._client, self._prefix, request.node, record)
            initial_cluster, member = ({}, 0) if self._external else await self._grown(request, others)
        self._log.info("let a node in", node=request.node, role=request.role, address=request.address)
        return Admission(
            cluster=cluster,
            initial_cluster=initial_cluster,
            etcd_token="" if self._external else self._token(),
            members={**others, request.node: record},
            timing=self._folder.timing(),
            member=member,
            etcd_id=etcd_id,
        )

    async def _check_etcd(self, request: AddMember) -> int:
        """The id of an external etcd, once the node speaks to that very one; 0 without. Raises Conflict."""
        if not self._external:
            return 0
        found = await self._client.look((Range(self._prefix + keys.GEN),), _RPC_S)
        known = found.header.cluster_id
        if request.etcd_id != known:
            raise Conflict(
                f"the etcd of {request.node} has the id {request.etcd_id:x}, that of this cluster {known:x}: it is another one",
                hint=f"put the endpoints of this cluster's etcd into [etcd] of {request.node}, and take another token",
            )
        return known

    async def _grown(self, request: AddMember, others: Mapping[str, KnownMember]) -> tuple[dict[str, str], int]:
        """The members of etcd by their peer URLs, and the id of the new one."""
        member = await self._learner(request, is_new=request.node not in others)
        peers = await self._peers()
        return {**{each.name: each.peer_urls[0] for each in peers if each.name}, request.node: request.peer_url}, member

    async def _check_ended(self, node: str) -> None:
        """A session is ended or expired by what it was for. Raises Busy while a node of this name has one."""
        if node in await self._below(keys.SESSION):
            raise Busy(f"the session of the {node} that was a member before has not ended", hint="try again in a moment")

    async def _learner(self, request: AddMember, *, is_new: bool) -> int:
        """Makes it one, unless it is one already; its id. Raises Busy; a new name that etcd has surely not taken is free."""
        in_doubt = False

        async def act() -> int:
            nonlocal in_doubt
            peers = await self._peers()
            there = next((each for each in peers if request.peer_url in each.peer_urls), None)
            if there is not None:
                check_peer(request.node, there)
                if there.id != request.spent:
                    return there.id
                await self._unlead(there, peers)
                with suppress(Invalid):  # it is gone already: this list may be of a moment ago
                    await etcd_members.remove(self._client, there.id, _RPC_S)
                self._log.info("took out a member of etcd that has lost its data", node=request.node, member=f"{there.id:x}")
            for each in peers:
                if each.learner and each is not there:  # 3.4 takes one at a time
                    await self._check_lives(each)
                    await self._promote(each)
            try:
                return (await etcd_members.add_learner(self._client, (request.peer_url,), _RPC_S)).id
            except OutcomeUnknown:
                in_doubt = True
                raise

        try:
            return await patiently(act, f"etcd does not take {request.node} yet", _CHANGE_S)
        except Busy as error:
            if is_new and not in_doubt and isinstance(error.__cause__, Busy):
                await self._take_back(request.node)
            raise

    async def _check_lives(self, peer: Peer) -> None:
        """Raises Busy. etcd makes a voter of a learner that is off, and a vote that is missing then stops those who live."""
        if not peer.name or peer.name not in await self._below(keys.SESSION):
            name = peer.name or f"the node of {', '.join(peer.peer_urls)}"
            raise Busy(f"{name} is to get its vote first and is silent: start it, or `piccoloctl nodes remove` it")

    async def _take_back(self, node: str) -> None:
        """The record of a node that was not let in. Best effort: one that stays is found by `remove`, and by the next try."""
        with suppress(PiccoloError):
            await self._forget(node)

    async def _promote(self, peer: Peer) -> None:
        await etcd_members.promote(self._client, peer.id, _RPC_S)
        self._log.info("made a voter", node=peer.name)

    def _token(self) -> str:
        settings = etcd_conf.read(self._folder.path / "etcd.json")
        if settings is None:
            raise StoreUnavailable("this member has no etcd of its own", hint="ask another one")
        return settings.token

    # --- taken out

    async def remove(self, node: str) -> None:
        if node == self._node:
            raise Conflict(f"{node} leads the kernel", hint="`piccoloctl leaders switchover kernel` first, if there are others")
        async with self._turn:
            records = await self.records()
            if node not in records and peer_with(node, None, await self._peers(), records) is None:
                raise NotFound(f"{node} is no member", hint="`piccoloctl nodes list` shows all")
            await patiently(lambda: self._expel(node, records), f"etcd does not let {node} go yet")
            await patiently(lambda: self._forget(node), f"etcd does not forget {node} yet")
        self._log.info("took a node out", node=node)

    async def _expel(self, node: str, records: Mapping[str, KnownMember]) -> None:
        """One that etcd does not know is out already, as when the answer to the last try was lost."""
        peers = await self._peers()
        peer = peer_with(node, records.get(node), peers, records)
        if peer is not None:
            if (heir := heir_of(peer, peers)) is not None:
                await self._promote(heir)
                peers = await etcd_members.members(self._client, _RPC_S)
            await self._unlead(peer, peers)
            await etcd_members.remove(self._client, peer.id, _RPC_S)

    async def _unlead(self, peer: Peer, peers: Sequence[Peer]) -> None:
        """An etcd whose leader goes elects for a moment, and takes no writes: it hands over first, if it can."""
        own = next((each for each in peers if each.name == self._node and not each.learner), None)
        with suppress(PiccoloError):
            told = await etcd_status.status(self._client, self._client.endpoint())
            if told.leader_id == peer.id and own is not None and peer.client_urls:
                await etcd_status.move_leader(self._client, urlsplit(peer.client_urls[0]).netloc, own.id)

    async def _forget(self, node: str) -> None:
        kinds = (cluster_records.NODE, cluster_records.CANDIDATE, cluster_records.DRAIN)
        gone = tuple(Delete(f"{self._prefix}{kind}{node}") for kind in kinds)
        await self._client.transact(Transaction((), gone), _RPC_S)

    # --- looked after

    async def run(self) -> None:
        """Makes a voter of what can become one, for as long as the process lives."""
        while True:
            await asyncio.sleep(_LOOK_S)
            with suppress(PiccoloError):  # health tells of an etcd that does not answer
                if self._leads() and not self._turn.locked():
                    await self._grow()

    async def _grow(self) -> None:
        peer = due(await self._peers())
        if peer is not None:
            await self._promote(peer)

    # --- reading

    async def _peers(self) -> tuple[Peer, ...]:
        """Those that are the nodes'."""
        return () if self._external else await etcd_members.members(self._client, _RPC_S)

    async def _below(self, kind: str) -> dict[str, Any]:
        prefix = self._prefix + kind
        found, _ = await self._client.list(prefix, _RPC_S)
        named = {each.key.removeprefix(prefix): wire.decode(kind + each.key.removeprefix(prefix), each.value) for each in found}
        return {name: value for name, value in named.items() if value is not None}


def due(peers: Sequence[Peer]) -> Peer | None:
    """Whom to make a voter now: a learner that has started, beside two voters at least. Pure."""
    voters = [each for each in peers if not each.learner]
    return next((each for each in peers if each.learner and each.name), None) if len(voters) > 1 else None


def heir_of(peer: Peer, peers: Sequence[Peer]) -> Peer | None:
    """Whom to make a voter before `peer` goes, which is the last one: without a vote nothing could be committed. Pure."""
    if peer.learner or any(not each.learner for each in peers if each.id != peer.id):
        return None
    return next((each for each in peers if each.learner and each.name), None)


def warnings(peers: Sequence[Peer]) -> list[str]:
    """What a person should know about the number of votes. Pure."""
    voters = [each.name for each in peers if not each.learner]
    learners = [each.name or "a node that has not started yet" for each in peers if each.learner]
    if len(voters) == 1 and learners:
        return [
            f"nobody takes over when {voters[0]} is lost, for {learners[0]} has no vote yet: "
            "a third node or a witness makes the cluster bear a loss"
        ]
    if len(voters) == 2:
        return ["two votes: the loss of either node stops all changes and moves; a third node or a witness mends that"]
    if len(voters) == 4:
        return ["four votes bear the loss of one node, as three do: a fifth node or a witness makes it two"]
    return []


def check_free(node: str, record: KnownMember, others: dict[str, KnownMember]) -> None:
    """Raises Exists, when another node has this name or this place. The same node again is welcome."""
    known = others.get(node)
    if known is not None and (known.address, known.role) != (record.address, record.role):
        raise Exists(
            f"a node {node} is in this cluster already, at {known.address}",
            hint=f"give this one another node.name; for the same machine made anew: `piccoloctl nodes remove {node}` first",
        )
    for name, other in others.items():
        if name != node and (other.client_url or other.rpc) == (record.client_url or record.rpc):
            raise Exists(f"{name} has the address {record.address} already", hint=f"`piccoloctl nodes remove {name}` frees it")


def check_stop(node: str, timing: Timing, stop_s: float) -> None:
    """Raises Invalid for a node whose containers may still run when others begin theirs: the margin covers no such F."""
    try:
        founded(timing.profile, stop_s)
    except Invalid as error:
        raise Invalid(
            f"{node} ends a container in {stop_s:.2f} s, too slow for this cluster: {error.detail}",
            hint="find out why containers die slowly there",
        ) from None


def check_peer(node: str, peer: Peer) -> None:
    """Raises Exists when the member of etcd that has this node's peer URL has the name of another node."""
    if peer.name not in ("", node):
        raise Exists(
            f"{peer.name} has the peer address {peer.peer_urls[0]} already",
            hint=f"`piccoloctl nodes remove {peer.name}` frees it",
        )


def peer_with(node: str, record: KnownMember | None, peers: Sequence[Peer], known: Container[str]) -> Peer | None:
    """The member of etcd that is a node's: by its name, or at its address unless it has the name of another `known` node.

    One that was never started has no name and no client URL. Several nodes may share an address.
    """
    named = next((each for each in peers if each.name == node), None)
    if named is not None or record is None:
        return named
    return next((each for each in peers if each.name not in known and _is_at(each, record.address)), None)


def _is_at(peer: Peer, address: str) -> bool:
    return any(urlsplit(url).hostname == address for url in peer.peer_urls)


async def patiently(act: Callable[[], Awaitable[T]], what: str, within_s: float = _CHANGE_S) -> T:
    """Again while etcd asks for patience, or does not tell what became of it: `act` looks first. Raises Busy in the end."""
    give_up_at = clock.now() + within_s
    while True:
        try:
            return await act()
        except (Busy, OutcomeUnknown, StoreUnavailable) as error:
            if clock.now() + _AGAIN_S > give_up_at:
                raise Busy(f"{what}: {error.detail}", hint="try again in a moment") from error
        await asyncio.sleep(_AGAIN_S)


def _member(
    name: str, record: KnownMember, peer: Peer | None, session: SessionRecord | None, kernel: EpochRecord | None
) -> Member:
    leads = kernel is not None and kernel.held and kernel.node == name
    return Member(
        node=name, role=record.role, address=record.address, rpc=record.rpc, api_url=record.api_url,
        state="alive" if session is not None else "silent",
        voter=peer is not None and not peer.learner,
        leads_kernel=leads,
        epoch=kernel.epoch if leads and kernel is not None else 0,
        rev=session.applied_rev if session is not None else 0,
    )  # fmt: skip

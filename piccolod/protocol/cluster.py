"""Commands of a cluster's membership, served by consensus: found it, join it, leave it, see it."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from piccolod.cluster_mode import Keeping
from piccolod.protocol.base import Nothing, Request
from piccolod.protocol.unlocking import AutoUnlock

Role = Literal["member", "witness"]
Profile = Literal["auto", "fast", "balanced", "patient"]


class Staying(msgspec.Struct, frozen=True, kw_only=True):
    """What a node that is drained still leads. `reason`: why no other node could; empty: it is on its way."""

    resource: str
    reason: str


class Draining(msgspec.Struct, frozen=True, kw_only=True):
    """Since when a node is drained, and by whom. `left`: in the order in which it goes."""

    author: str
    since_ms: int
    left: tuple[Staying, ...]


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One node. `rpc` ADDRESS:PORT of its peer channel; `epoch` of the kernel, where it leads it; `rev` as it said last.

    `deadline_s`: seconds left to D_hard of its session, of another node at most; 0 without a session; null: it never runs out.
    """

    node: str
    role: str
    address: str
    rpc: str
    api_url: str
    state: Literal["alive", "silent"]
    voter: bool
    leads_kernel: bool
    epoch: int
    rev: int
    deadline_s: float | None = None
    drain: Draining | None = None


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """`cluster`, its id, is empty where this node is alone. `warnings`: sentences for a person; `notes`: on what was just done.

    `out`: the others have taken this node out; a member of its name is another machine. `etcd`: who keeps it, the members or an
    owner; with an owner nobody here is a voter.
    """

    mode: Literal["alone", "etcd"]
    node: str
    cluster: str = ""
    profile: str = ""
    members: tuple[Member, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    out: bool = False
    etcd: Keeping = "managed"


class GetCluster(Request[Cluster], frozen=True, kw_only=True):
    """StoreUnavailable: etcd cannot be asked who its members are."""

    command: ClassVar[str] = "consensus.cluster"
    reply: ClassVar[type] = Cluster


class InitCluster(Request[Cluster], frozen=True, kw_only=True):
    """Makes this node the first member. Its modules restart right after the answer. `auto_unlock`: the setting to begin with.

    Exists: it is one already. Invalid: its address or its disk will not do. Locked, Conflict: its store is not open.
    """

    command: ClassVar[str] = "consensus.init_cluster"
    reply: ClassVar[type] = Cluster
    profile: Profile = "auto"
    auto_unlock: AutoUnlock = AutoUnlock.PEERS


class JoinCluster(Request[Cluster], frozen=True, kw_only=True):
    """Makes this node a member of the cluster that the node at `address` (HOST or HOST:PORT of its peer channel) is in.

    Its modules restart right after the answer. Exists: it is a member. Conflict: it has data of its own, or apps that run.
    Forbidden: the token is not taken, or the other side is not the cluster of the token.
    """

    command: ClassVar[str] = "consensus.join_cluster"
    reply: ClassVar[type] = Cluster
    address: str
    token: str
    role: Role = "member"
    discard_local: bool = False

    def __repr__(self) -> str:
        return f"JoinCluster(address={self.address!r}, role={self.role!r})"


class KnownMember(msgspec.Struct, frozen=True, kw_only=True):
    """`node/<name>` in etcd, and one entry of `members.json`: where a node is found. The order is that of the bytes in etcd.

    `role`: member, or witness, which votes in etcd and leads nothing. `client_url`: of its member of etcd, if it has one.
    """

    address: str
    client_url: str
    rpc: str
    api_url: str = ""
    role: str = "member"


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """`timing.json`: one for the cluster. `stop_s`: F, as the first member measured it."""

    profile: str
    stop_s: float


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """What a joiner needs. `initial_cluster`: the members of etcd, NAME -> peer URL, the joiner among them.

    `member`: the id of the joiner's own.
    `etcd_id`: of an etcd that its owner keeps, which has no members here; 0: the members keep it.
    """

    cluster: str
    initial_cluster: dict[str, str]
    etcd_token: str
    members: dict[str, KnownMember]
    timing: Timing
    member: int = 0
    etcd_id: int = 0


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a joiner that was let in, as JSON: its certificate, the authority's, and what AddMember answered."""

    certificate: str
    ca: str
    admission: Admission


class AddMember(Request[Admission], frozen=True, kw_only=True):
    """Lets a node in: it is known from now on, and a learner of etcd. On the kernel's leader (NotLeader elsewhere).

    The same again gets the same answer. `spent`: the id of a member of etcd that the node had before and whose data is gone: it
    gets another, for one that forgot what it has acknowledged must not go on under its id.
    `stop_s`: how fast it ends a container; 0: it does not say.
    Conflict: `etcd_id`, of the external etcd that it speaks to (0: none), is not that of the cluster's.
    Exists: another node has this name or this address. Busy: another one is joining. Invalid: it ends containers too slowly.
    """

    command: ClassVar[str] = "consensus.add_member"
    reply: ClassVar[type] = Admission
    node: str
    role: Role
    address: str
    client_url: str
    peer_url: str
    rpc: str
    api_url: str
    spent: int = 0
    stop_s: float = 0.0
    etcd_id: int = 0


class RemoveMember(Request[Nothing], frozen=True, kw_only=True):
    """Takes a node out, also one that is gone for good. On the kernel's leader. Conflict: it is this node itself."""

    command: ClassVar[str] = "consensus.remove_member"
    reply: ClassVar[type] = Nothing
    node: str


class Leave(Request[Nothing], frozen=True, kw_only=True):
    """This node, which the others have removed already, becomes one alone and empty; its store is set aside.

    Its modules restart right after the answer. Conflict: it is still a member, or alone already, or apps still run here.
    Busy: it still ends what it led. `force`: also where the cluster does not say whether it is a member.
    """

    command: ClassVar[str] = "consensus.leave"
    reply: ClassVar[type] = Nothing
    force: bool = False

"""Membership: found a cluster, join one, leave it; tokens that let new nodes in; the nodes."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Annotated, Literal

import msgspec
from litestar import Response
from litestar.params import FromPath, JSONBody

from piccolod.errors import (
    Busy,
    Conflict,
    Exists,
    Locked,
    NoLeader,
    NotFound,
    NotLeader,
    OutcomeUnknown,
    PiccoloError,
    StoreCorrupt,
    StoreFull,
    StoreRestored,
    StoreUnavailable,
    TooLarge,
    TooMany,
)
from piccolod.pki.identity import Role
from piccolod.protocol.cluster import (
    Cluster,
    GetCluster,
    InitCluster,
    JoinCluster,
    Leave,
    Member,
    Profile,
    RemoveMember,
)
from piccolod.protocol.consensus import DrainNode, Pause
from piccolod.protocol.joining import (
    TOKEN_MOST_S,
    TOKEN_S,
    CreateJoinToken,
    ForgetNode,
    GetJoinTokens,
    JoinTokenView,
    NewJoinToken,
    RevokeJoinToken,
)
from piccolod.protocol.persistence import GetRevision, Lock
from piccolod.protocol.recovery import Recover, Recovery
from piccolod.protocol.unlocking import AutoUnlock
from services.api.actor import Scope
from services.api.asked import BASE, Req, actor_of, core_of, idem_of, written
from services.api.core import Core
from services.api.documents import NodeView
from services.api.endpoint import COMMIT, JSON, STORE, UNKNOWN, endpoint
from services.api.patience import patiently
from services.api.routes.crypto import call_off, quiesce

_INIT_S = 60.0
_JOIN_S = 110.0  # the member answers within 45 s, and etcd here may take 30 s to start
_REMOVE_S = 40.0
_LEAVE_S = 20.0
_RECOVER_S = 120.0  # the span is waited for, 20 s at most, and etcd may take 30 s to start
_LOCK_S = 40.0
_ELECTION_S = 8.0
_AGAIN_S = 0.2
# etcd may elect for a moment after one of its members has gone.
_ELECTING = (StoreUnavailable, OutcomeUnknown, NoLeader, Busy)
_MEMBERS = (StoreUnavailable, StoreCorrupt)
_PAUSE = (Conflict, NoLeader, OutcomeUnknown, *_MEMBERS)


class InitBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`profile`: how fast a lost node is noticed; without it what `cluster.timing` of the configuration says.

    `auto_unlock`: whether a member that restarts is unlocked by its peers. It becomes the setting of that name.
    """

    profile: Profile | None = None
    auto_unlock: AutoUnlock = AutoUnlock.PEERS


class JoinBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`address`: HOST or HOST:PORT of a member. `discard_local`: sets a store of this node's own aside."""

    address: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    token: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    role: Literal["member", "witness"] = "member"
    discard_local: bool = False

    def __repr__(self) -> str:
        return f"JoinBody(address={self.address!r}, role={self.role!r})"


class JoinTokenBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`role`: of the node that it lets in."""

    role: Role = Role.MEMBER
    expires_in_s: Annotated[float, msgspec.Meta(gt=0, le=TOKEN_MOST_S)] = TOKEN_S


class LeaveBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`force`: also where etcd does not say whether this node is a member, for one that the others have lost for good."""

    force: bool = False


class RecoverBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Without `force` the answer says what would be lost, and nothing of the cluster is changed.

    What the node's own etcd has beyond its log is taken into that either way.
    """

    force: bool = False


@endpoint("GET", f"{BASE}/cluster", scope=Scope.READ, fails=_MEMBERS, tag="cluster")
async def show(request: Req) -> Cluster:
    """Whether this node is alone, and the members of its cluster as etcd knows them."""
    return await core_of(request).ask(GetCluster())


@endpoint(
    "POST", f"{BASE}/cluster/init", scope=Scope.ADMIN, accepts=JSON, tag="cluster",
    fails=(Exists, Conflict, Locked, *_MEMBERS, StoreFull),
)  # fmt: skip
async def init(request: Req, data: JSONBody[InitBody | None] = None) -> Response[Cluster]:
    """Makes this node the first member of a cluster. Its modules restart right after the answer."""
    core = core_of(request)
    body = data or InitBody()
    profile = body.profile or msgspec.convert(core.config.cluster.timing, Profile)
    return Response(await core.order(InitCluster(profile=profile, auto_unlock=body.auto_unlock), timeout_s=_INIT_S))


@endpoint(
    "POST", f"{BASE}/cluster/join", scope=Scope.ADMIN, accepts=JSON, leads=False, tag="cluster",
    fails=(Exists, Conflict, Locked, TooMany, NotLeader, NoLeader, *_MEMBERS, StoreFull),
)  # fmt: skip
async def join(request: Req, data: JSONBody[JoinBody]) -> Response[Cluster]:
    """Makes this node a member of another node's cluster. Its modules restart right after the answer."""
    order = JoinCluster(address=data.address, token=data.token, role=data.role, discard_local=data.discard_local)
    try:
        return Response(await core_of(request).order(order, timeout_s=_JOIN_S))
    except NotLeader as error:
        raise NotLeader(error.detail, hint=error.hint) from error  # without a leader to send it on to: it is for this node


@endpoint(
    "POST", f"{BASE}/cluster/leave", scope=Scope.ADMIN, accepts=JSON, fails=(Conflict, Busy, *STORE), status=204, tag="cluster"
)  # fmt: skip
async def leave(request: Req, data: JSONBody[LeaveBody | None] = None) -> Response[None]:
    """Makes a node that the others have removed a node alone again, locked and empty; its store is set aside.

    Its apps are stopped first. It is refused while one of them still runs.
    """
    core, force = core_of(request), (data or LeaveBody()).force
    if await _is_member(core, force):
        await _end_acting(core, force)
    else:
        await core.order(Leave(), timeout_s=_LEAVE_S)
    return Response(None, status_code=204)


async def _is_member(core: Core, force: bool) -> bool:
    """Whether it has a cluster to leave. Raises Conflict when that has not taken it out yet."""
    try:
        found = await core.ask(GetCluster())
    except (StoreUnavailable, StoreRestored):
        if not force:
            raise
        return True
    if not found.out and found.node in {each.node for each in found.members}:
        hint = f"`piccoloctl nodes remove {found.node}` on the kernel's leader comes first"
        raise Conflict(f"{found.node} is still a member of the cluster", hint=hint)
    return found.mode != "alone"


async def _end_acting(core: Core, force: bool) -> None:
    wish = secrets.token_hex(8)
    left, _ = await quiesce(core, wish)  # where that is not known, consensus looks for itself
    try:
        if left:
            raise Conflict(f"apps still run here: {', '.join(left)}", hint="try again in a moment; `piccoloctl apps list`")
        with suppress(*((PiccoloError,) if force else ())):  # its store is set aside, and its process restarted
            await core.order(Lock(stays=False), timeout_s=_LOCK_S)
        await core.order(Leave(force=force), timeout_s=_LEAVE_S)
    except PiccoloError as error:
        await call_off(core, wish, error)
        raise


@endpoint(
    "POST", f"{BASE}/cluster/recover", scope=Scope.ADMIN, accepts=JSON, leads=False, tag="cluster",
    fails=(Conflict, Busy, Locked, TooLarge, *_MEMBERS, StoreFull),
)  # fmt: skip
async def recover(request: Req, data: JSONBody[RecoverBody | None] = None) -> Response[Recovery]:
    """Begins a cluster anew with this member alone, whose etcd is lost for good or came from a backup.

    Its modules restart right after the answer. The other members are asked first: it is refused when one of them has more of
    the log, or says that etcd works.
    """
    core, force = core_of(request), (data or RecoverBody()).force
    heard = await core.standings.ask_all() if core.standings is not None else ()
    order = Recover(heard=heard, force=force)
    return Response(await core.order(order, timeout_s=_RECOVER_S, idem=await idem_of(request)))


@endpoint("POST", f"{BASE}/cluster/pause", scope=Scope.ADMIN, fails=_PAUSE, status=204, tag="cluster")
async def pause(request: Req) -> Response[None]:
    """From now on nothing moves between nodes, neither by itself nor by request: for work on the machines."""
    await core_of(request).order(Pause(on=True, author=actor_of(request).name))
    return Response(None, status_code=204)


@endpoint("POST", f"{BASE}/cluster/resume", scope=Scope.ADMIN, fails=_PAUSE, status=204, tag="cluster")
async def resume(request: Req) -> Response[None]:
    """Ends a pause."""
    await core_of(request).order(Pause(on=False, author=actor_of(request).name))
    return Response(None, status_code=204)


@endpoint("GET", f"{BASE}/cluster/tokens", scope=Scope.ADMIN, fails=STORE, tag="cluster")
async def list_tokens(request: Req) -> tuple[JoinTokenView, ...]:
    """Join tokens: the open ones, and those that ended lately. Newest first."""
    return (await core_of(request).ask(GetJoinTokens())).tokens


@endpoint("POST", f"{BASE}/cluster/tokens", scope=Scope.ADMIN, fails=COMMIT, accepts=JSON, status=201, tag="cluster")
async def create_token(request: Req, data: JSONBody[JoinTokenBody | None] = None) -> Response[NewJoinToken]:
    """Makes a token that lets one node in. It is shown this once."""
    body = data or JoinTokenBody()
    order = CreateJoinToken(role=body.role, ttl_s=body.expires_in_s, author=actor_of(request).name)
    made = await core_of(request).order(order, idem=await idem_of(request))
    return written(made, made.rev, 201)


@endpoint(
    "DELETE", f"{BASE}/cluster/tokens/{{number:str}}", scope=Scope.ADMIN, fails=(*COMMIT, *UNKNOWN), status=204, tag="cluster"
)  # fmt: skip
async def revoke_token(request: Req, number: FromPath[str]) -> Response[None]:
    """Makes a join token void, at once."""
    done = await core_of(request).order(RevokeJoinToken(id=number, author=actor_of(request).name), idem=await idem_of(request))
    return written(None, done.rev, 204)


@endpoint("GET", f"{BASE}/nodes", scope=Scope.READ, fails=_MEMBERS, tag="nodes")
async def nodes(request: Req) -> tuple[NodeView, ...]:
    """The nodes of the cluster; one where it is alone."""
    return await _nodes(core_of(request))


@endpoint("GET", f"{BASE}/nodes/{{node:str}}", scope=Scope.READ, fails=(*_MEMBERS, *UNKNOWN), tag="nodes")
async def node(request: Req, node: FromPath[str]) -> NodeView:
    """One of them."""
    for each in await _nodes(core_of(request)):
        if each.id == node:
            return each
    raise NotFound(f"there is no node {node[:80]!r}", hint="`piccoloctl nodes list` shows all")


@endpoint("POST", f"{BASE}/nodes/{{node:str}}/drain", scope=Scope.ADMIN, fails=(*_PAUSE, *UNKNOWN), status=204, tag="nodes")
async def drain(request: Req, node: FromPath[str]) -> Response[None]:
    """Hands over what a node leads, one after the other, and lets it take nothing over: before it is switched off.

    `drain` of the node says how far that is. It holds over reboots of the node.
    """
    await core_of(request).order(DrainNode(node=node, on=True, author=actor_of(request).name))
    return Response(None, status_code=204)


@endpoint("POST", f"{BASE}/nodes/{{node:str}}/undrain", scope=Scope.ADMIN, fails=(*_PAUSE, *UNKNOWN), status=204, tag="nodes")
async def undrain(request: Req, node: FromPath[str]) -> Response[None]:
    """Ends a drain. Nothing goes back by itself."""
    await core_of(request).order(DrainNode(node=node, on=False, author=actor_of(request).name))
    return Response(None, status_code=204)


@endpoint(
    "POST", f"{BASE}/nodes/{{node:str}}/remove", scope=Scope.ADMIN, fails=(*COMMIT, *UNKNOWN), status=204, tag="nodes"
)  # fmt: skip
async def remove(request: Req, node: FromPath[str]) -> Response[None]:
    """Takes a node out of the cluster, also one that is gone for good. Its name is free after that.

    One that a former attempt took out of etcd, and no further, is taken off the list by the next one.
    """
    core = core_of(request)
    unknown, before = None, await core.rev()
    try:
        await core.order(RemoveMember(node=node), timeout_s=_REMOVE_S)
    except NotFound as error:
        unknown = error
    forget, idem = ForgetNode(node=node, author=actor_of(request).name), await idem_of(request)
    done = await patiently(lambda _: core.order(forget, idem=idem), _ELECTING, _ELECTION_S, _AGAIN_S)
    if unknown is not None and done.rev <= before:
        raise unknown  # it was not on the list either
    return written(None, done.rev, 204)


async def _nodes(core: Core) -> tuple[NodeView, ...]:
    found = await core.ask(GetCluster())
    if found.mode == "alone":
        rev = (await core.ask(GetRevision())).rev
        role = core.kernel_role
        leads = role.role == "leader"
        config = core.config
        return (
            NodeView(
                name=found.node, id=found.node, address=config.node.address, state="alive", role="member", rpc="",
                api_url=config.api_url, voter=True, leads_kernel=leads, epoch=role.epoch if leads else 0, rev=rev, lag=0,
                deadline_s=None,
            ),
        )  # fmt: skip
    head = max((each.rev for each in found.members), default=0)
    return tuple(_view(each, head) for each in found.members)


def _view(member: Member, head: int) -> NodeView:
    return NodeView(
        name=member.node, id=member.node, lag=head - member.rev,
        **{name: getattr(member, name) for name in Member.__struct_fields__ if name != "node"},
    )  # fmt: skip


ROUTES = (
    show, init, join, leave, recover, pause, resume, list_tokens, create_token, revoke_token, nodes, node, drain, undrain,
    remove,
)  # fmt: skip

"""Who leads what, and why. `/leader/...` is for load balancers: 200 on the holder alone."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from litestar import Response
from litestar.params import FromPath, JSONBody, QueryParameter

from piccolod.errors import Conflict, Exists, NoLeader, NotLeader, TermOver
from piccolod.protocol.consensus import Change, GetHistory, GetLeadership, GetWhy, Leadership, Release, Switchover, Why
from services.api.actor import Scope
from services.api.asked import BASE, Req, core_of, idem_of
from services.api.documents import Holder
from services.api.endpoint import ELSEWHERE, JSON, UNKNOWN, Failures, endpoint

_PATH = f"{BASE}/leadership/{{resource:str}}"
# An app gets its manifest's grace to stop (services/consensus/planned_moves.py).
_MOVE_S: Final = 40.0


class SwitchoverBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`to`: the node that should lead; empty: the best candidate."""

    to: str = ""


@endpoint("GET", f"{BASE}/leadership", scope=Scope.READ, tag="leadership")
async def list_leaderships(request: Req) -> tuple[Leadership, ...]:
    """Every resource that is led, or was."""
    return (await core_of(request).ask(GetLeadership())).leaderships


@endpoint("GET", f"{BASE}/leadership/history", scope=Scope.READ, tag="leadership")
async def history(
    request: Req,
    resource: Annotated[str | None, QueryParameter(max_length=64)] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 50,
) -> tuple[Change, ...]:
    """Changes of leadership, newest first."""
    return (await core_of(request).ask(GetHistory(resource=resource, limit=limit))).changes


@endpoint("GET", _PATH, scope=Scope.READ, fails=UNKNOWN, tag="leadership")
async def show(request: Req, resource: FromPath[str]) -> Leadership:
    """One resource: `kernel` or `app:<name>`."""
    return (await core_of(request).ask(GetLeadership(resource=resource))).leaderships[0]


@endpoint("GET", f"{_PATH}/why", scope=Scope.READ, fails=UNKNOWN, tag="leadership")
async def why(request: Req, resource: FromPath[str]) -> Why:
    """Why it is led where it is."""
    return await core_of(request).ask(GetWhy(resource=resource))


@endpoint(
    "POST", f"{_PATH}/switchover", scope=Scope.WRITE, fails=(*UNKNOWN, *ELSEWHERE, Conflict, Exists), accepts=JSON,
    leads=False, moves=True, tag="leadership",
)  # fmt: skip
async def switchover(
    request: Req, resource: FromPath[str], data: JSONBody[SwitchoverBody | None] = None
) -> Response[Leadership]:
    """Hands the resource to another node."""
    order = Switchover(resource=resource, to=(data or SwitchoverBody()).to)
    return Response(await core_of(request).order(order, timeout_s=_MOVE_S, idem=await idem_of(request)))


@endpoint(
    "POST", f"{_PATH}/release", scope=Scope.WRITE, fails=(*UNKNOWN, *ELSEWHERE, Conflict),
    leads=False, moves=True, tag="leadership",
)  # fmt: skip
async def release(request: Req, resource: FromPath[str]) -> Response[Leadership]:
    """Gives the resource up, for another node to take."""
    return Response(await core_of(request).order(Release(resource=resource), timeout_s=_MOVE_S, idem=await idem_of(request)))


def _leader_of(request: Req, resource: str) -> Holder:
    """Read from the deadline page: no process can be late with the answer."""
    core = core_of(request)
    try:
        token = core.gate.check(resource)
    except TermOver as error:
        known = core.kernel_role
        if resource == "kernel" and known.role == "unknown":
            raise NoLeader(f"nobody is known to lead {resource}: {error.reason}") from None
        leader = core.leader() if resource == "kernel" else None
        raise NotLeader(f"this node does not lead {resource}: {error.reason}", leader=leader) from None
    return Holder(resource=resource, node=core.config.node.name, epoch=token.epoch)


def _probe(method: str, path: str, fails: Failures, name: str, promise: str) -> Any:
    """The same for GET and HEAD, which differ only in the body."""
    of_app = "{name" in path

    async def app(request: Req, name: FromPath[str]) -> Response[Holder]:
        return _held(_leader_of(request, f"app:{name}"), method)

    async def kernel(request: Req) -> Response[Holder]:
        return _held(_leader_of(request, "kernel"), method)

    probe = app if of_app else kernel
    probe.__name__ = f"{method.lower()}_{name}"
    probe.__doc__ = promise
    return endpoint(method, path, scope=None, asks=False, fails=fails, tag="leadership")(probe)


def _held(holder: Holder, method: str) -> Response[Holder]:
    return Response(holder if method == "GET" else None)  # type: ignore[arg-type]


ROUTES = (
    list_leaderships,
    history,
    show,
    why,
    switchover,
    release,
    *(
        _probe(method, f"{BASE}/leader/{path}", fails, f"leader_of_{name}", f"200 only on the node that leads {what}.")
        for path, fails, name, what in (
            ("kernel", (NotLeader, NoLeader), "kernel", "the kernel"),
            ("app/{name:str}", (NotLeader,), "app", "this app"),
        )
        for method in ("GET", "HEAD")
    ),
)

"""Who leads what, and why. `/leader/...` is for load balancers: 200 on the holder alone."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Response
from litestar.params import Parameter

from piccolod.errors import Conflict, NoLeader, NotLeader, TermOver
from piccolod.protocol.consensus import Change, GetHistory, GetLeadership, GetWhy, Leadership, Why
from services.api.actor import Scope
from services.api.asked import BASE, Req, core_of
from services.api.documents import Holder
from services.api.endpoint import JSON, UNKNOWN, endpoint

_PATH = f"{BASE}/leadership/{{resource:str}}"


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
    resource: Annotated[str | None, Parameter(max_length=64)] = None,
    limit: Annotated[int, Parameter(ge=1, le=1000)] = 50,
) -> tuple[Change, ...]:
    """Changes of leadership, newest first."""
    return (await core_of(request).ask(GetHistory(resource=resource, limit=limit))).changes


@endpoint("GET", _PATH, scope=Scope.READ, fails=UNKNOWN, tag="leadership")
async def show(request: Req, resource: str) -> Leadership:
    """One resource: `kernel` or `app:<name>`."""
    return (await core_of(request).ask(GetLeadership(resource=resource))).leaderships[0]


@endpoint("GET", f"{_PATH}/why", scope=Scope.READ, fails=UNKNOWN, tag="leadership")
async def why(request: Req, resource: str) -> Why:
    """Why it is led where it is."""
    return await core_of(request).ask(GetWhy(resource=resource))


@endpoint("POST", f"{_PATH}/switchover", scope=Scope.WRITE, fails=(*UNKNOWN, Conflict), accepts=JSON, tag="leadership")
async def switchover(request: Req, resource: str, data: SwitchoverBody | None = None) -> Response[None]:
    """Hands the resource to another node."""
    found = (await core_of(request).ask(GetLeadership(resource=resource))).leaderships[0]
    raise _alone(found, (data or SwitchoverBody()).to)


@endpoint("POST", f"{_PATH}/release", scope=Scope.WRITE, fails=(*UNKNOWN, Conflict), tag="leadership")
async def release(request: Req, resource: str) -> Response[None]:
    """Gives the resource up, for another node to take."""
    found = (await core_of(request).ask(GetLeadership(resource=resource))).leaderships[0]
    raise _alone(found, "")


def _alone(found: Leadership, to: str) -> Conflict:
    """A node alone has nobody to hand anything to: the refusal is the whole truth, not a missing feature."""
    others = [each for each in found.candidates if each.eligible and each.node != found.node]
    if to == found.node and to:
        return Conflict(f"{to} leads {found.resource} already")
    if to:
        return Conflict(f"there is no node {to[:50]!r}: this node is alone")
    if others:
        return Conflict(f"{found.resource} cannot be handed over by this version")
    return Conflict(
        f"{found.resource} stays on {found.node or 'this node'}: it is alone, there is nobody to take over",
        hint="stop an app with `piccoloctl apps stop`; lock the node with `piccoloctl lock`",
    )


def _leader_of(request: Req, resource: str) -> Holder:
    """Read from the deadline page: no process can be late with the answer."""
    core = core_of(request)
    try:
        token = core.gate.check(resource)
    except TermOver as error:
        known = core.kernel_role
        if resource == "kernel" and known.role == "unknown":
            raise NoLeader(f"nobody is known to lead {resource}: {error.reason}") from None
        raise NotLeader(f"this node does not lead {resource}: {error.reason}") from None
    return Holder(resource=resource, node=core.config.node.name, epoch=token.epoch)


def _probe(method: str, app: bool) -> Any:
    fails = (NotLeader, NoLeader)
    if app:

        async def of_app(request: Req, name: str) -> Response[Holder]:
            return _held(_leader_of(request, f"app:{name}"), method)

        of_app.__name__ = f"{method.lower()}_leader_of_app"
        of_app.__doc__ = "200 only on the node that leads this app."
        return endpoint(method, f"{BASE}/leader/app/{{name:str}}", scope=None, fails=fails, tag="leadership")(of_app)

    async def of_kernel(request: Req) -> Response[Holder]:
        return _held(_leader_of(request, "kernel"), method)

    of_kernel.__name__ = f"{method.lower()}_leader_of_kernel"
    of_kernel.__doc__ = "200 only on the node that leads the kernel."
    return endpoint(method, f"{BASE}/leader/kernel", scope=None, fails=fails, tag="leadership")(of_kernel)


def _held(holder: Holder, method: str) -> Response[Holder]:
    return Response(holder if method == "GET" else None)  # type: ignore[arg-type]


ROUTES = (
    list_leaderships,
    history,
    show,
    why,
    switchover,
    release,
    _probe("GET", app=False),
    _probe("HEAD", app=False),
    _probe("GET", app=True),
    _probe("HEAD", app=True),
)

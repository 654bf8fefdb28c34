"""The control store: where it is, what was written, whether it is whole."""

from __future__ import annotations

from typing import Annotated

from litestar.params import QueryParameter

from piccolod.errors import StoreCorrupt, StoreFull
from piccolod.protocol.persistence import Check, GetLog, GetRevision, LogEntry, Repair, Revision, StoreReport
from services.api.actor import Scope
from services.api.asked import BASE, Req, core_of, idem_of
from services.api.endpoint import endpoint

_SCAN_S = 120.0


@endpoint("GET", f"{BASE}/store/revision", scope=Scope.READ, fails=(StoreCorrupt,), tag="store")
async def revision(request: Req) -> Revision:
    """What this node has, what was announced, and what it has verified."""
    return await core_of(request).ask(GetRevision())


@endpoint("GET", f"{BASE}/store/log", scope=Scope.READ, fails=(StoreCorrupt,), tag="store")
async def log(
    request: Req,
    after: Annotated[int, QueryParameter(ge=-1, description="Entries after this rev; -1: the last ones.")] = -1,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
) -> tuple[LogEntry, ...]:
    """The entries of the sealed log, oldest first."""
    return (await core_of(request).ask(GetLog(after=after, limit=limit))).entries


@endpoint("POST", f"{BASE}/store/check", scope=Scope.ADMIN, tag="store")
async def check(request: Req) -> StoreReport:
    """Reads the whole store and verifies every entry. Changes nothing."""
    return await core_of(request).ask(Check(), timeout_s=_SCAN_S)


@endpoint("POST", f"{BASE}/store/repair", scope=Scope.ADMIN, fails=(StoreFull,), tag="store")
async def repair(request: Req) -> StoreReport:
    """Sets a damaged file aside and keeps every entry up to the damage. Deletes nothing."""
    return await core_of(request).order(Repair(), timeout_s=_SCAN_S, idem=await idem_of(request))


ROUTES = (revision, log, check, repair)

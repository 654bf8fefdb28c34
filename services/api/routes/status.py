"""One document for one screen."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from litestar.params import FromPath

from piccolod import cluster_mode
from piccolod.errors import PiccoloError
from piccolod.protocol.apps import ListApps
from piccolod.protocol.consensus import GetLeadership
from piccolod.protocol.persistence import GetCryptoStatus, GetRevision
from services.api import settings
from services.api.actor import Scope
from services.api.asked import BASE, Req, core_of
from services.api.core import Core
from services.api.documents import ModuleView, Status
from services.api.endpoint import endpoint


@endpoint("GET", f"{BASE}/status", scope=Scope.READ, asks=False, tag="status")
async def status(request: Req) -> Status:
    """Node, role, lock, rev, modules and apps. A part that does not answer is missing, with its reason; the rest is there."""
    core = core_of(request)
    missing: dict[str, str] = {}

    async def part(name: FromPath[str], work: Any) -> Any:
        try:
            return await work
        except PiccoloError as error:
            missing[name] = error.detail
            return None

    modules, apps, crypto, rev, kernel, chosen = await asyncio.gather(
        part("modules", core.supervisor({"cmd": "modules"}, timeout_s=2.0)),
        part("apps", core.ask(ListApps(), timeout_s=2.0)),
        part("crypto", core.ask(GetCryptoStatus(), timeout_s=2.0)),
        part("rev", core.ask(GetRevision(), timeout_s=2.0)),
        part("role", core.ask(GetLeadership(resource="kernel"), timeout_s=2.0)),
        part("settings", settings.read(core)),
    )
    judged, _ = await core.judge()
    return Status(
        node=core.config.node.name,
        name=(chosen[0].title if chosen else "") or core.config.node.name,
        address=core.config.node.address,
        cluster=_cluster(core, missing),
        role=kernel.leaderships[0].role if kernel and kernel.leaderships else "unknown",
        locked=crypto.locked if crypto else True,
        initialized=crypto.initialized if crypto else False,
        rev=rev.rev if rev else 0,
        health=judged.level.value,
        ready=judged.ready,
        reason=judged.reason,
        modules=msgspec.convert(modules or [], tuple[ModuleView, ...]),
        apps=apps.apps if apps else (),
        missing=missing,
    )


def _cluster(core: Core, missing: dict[str, str]) -> str | None:
    try:
        mode = cluster_mode.load(core.config.paths.cluster)
    except PiccoloError as error:
        missing["cluster"] = error.detail
        return None
    return None if mode is None else mode.cluster


ROUTES = (status,)

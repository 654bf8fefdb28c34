"""Volumes of apps."""

from __future__ import annotations

from litestar.params import FromQuery

from piccolod.protocol.volumes import ListVolumes, VolumeDocument
from services.api.actor import Scope
from services.api.asked import BASE, Req, core_of
from services.api.endpoint import STORE, endpoint


@endpoint("GET", f"{BASE}/volumes", scope=Scope.READ, fails=STORE, tag="volumes")
async def list_volumes(request: Req, app: FromQuery[str | None] = None) -> tuple[VolumeDocument, ...]:
    """Every volume on this node, attached or not."""
    return (await core_of(request).ask(ListVolumes(app=app))).volumes


ROUTES = (list_volumes,)

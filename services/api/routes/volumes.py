"""Volumes of apps."""

from __future__ import annotations

from litestar.params import FromPath, FromQuery

from piccolod.errors import NotFound
from piccolod.protocol.volumes import ListVolumes, VolumeDocument
from services.api.actor import Scope
from services.api.asked import BASE, Req, core_of
from services.api.endpoint import STORE, UNKNOWN, endpoint


@endpoint("GET", f"{BASE}/volumes", scope=Scope.READ, fails=STORE, tag="volumes")
async def list_volumes(request: Req, app: FromQuery[str | None] = None) -> tuple[VolumeDocument, ...]:
    """Every volume on this node, attached or not."""
    return (await core_of(request).ask(ListVolumes(app=app))).volumes


@endpoint("GET", f"{BASE}/volumes/{{volume:str}}", scope=Scope.READ, fails=(*STORE, *UNKNOWN), tag="volumes")
async def show(request: Req, volume: FromPath[str]) -> VolumeDocument:
    """One volume by `<app>.<name>`."""
    app, _, name = volume.partition(".")
    for found in (await core_of(request).ask(ListVolumes(app=app))).volumes:
        if (found.app, found.name) == (app, name):
            return found
    raise NotFound(f"there is no volume {volume[:130]!r} on this node", hint="`piccoloctl volumes list` shows all")


ROUTES = (list_volumes, show)

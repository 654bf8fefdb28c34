"""Settings of the whole cluster."""

from __future__ import annotations

import msgspec
from litestar import Response
from litestar.params import JSONBody

from piccolod.protocol.persistence import Commit, Write
from services.api import settings
from services.api.actor import Scope
from services.api.asked import BASE, Req, actor_of, core_of, idem_of, written
from services.api.endpoint import COMMIT, JSON, STORE, endpoint
from services.api.settings import Settings, SettingsDocument


@endpoint("GET", f"{BASE}/settings", scope=Scope.READ, fails=STORE, tag="settings")
async def show(request: Req) -> SettingsDocument:
    """All settings, defaults included."""
    found, generation = await settings.read(core_of(request))
    return _document(found, generation)


@endpoint("PUT", f"{BASE}/settings", scope=Scope.ADMIN, fails=COMMIT, accepts=JSON, tag="settings")
async def replace(request: Req, data: JSONBody[Settings]) -> Response[SettingsDocument]:
    """Replaces all settings; what the body leaves out gets its default."""
    body = msgspec.to_builtins(data)
    order = Commit(
        writes=(Write(collection=settings.COLLECTION, id=settings.ID, body=body),), author=actor_of(request).name
    )  # fmt: skip
    rev = (await core_of(request).order(order, idem=await idem_of(request))).rev
    return written(_document(data, rev), rev)


def _document(chosen: Settings, generation: int) -> SettingsDocument:
    return SettingsDocument(**msgspec.structs.asdict(chosen), generation=generation)


ROUTES = (show, replace)

"""Modules, as the supervisor sees them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Response
from litestar.params import FromPath, QueryParameter

from piccolod.errors import NotFound
from services.api.actor import Scope
from services.api.asked import BASE, Req, core_of
from services.api.core import Core
from services.api.documents import Death, ModuleLog, ModuleView
from services.api.endpoint import UNKNOWN, endpoint

_TAIL_MOST = 10_000


@endpoint("GET", f"{BASE}/modules", scope=Scope.READ, tag="modules")
async def modules(request: Req) -> tuple[ModuleView, ...]:
    """Every process of the kernel table, and the programs beside it."""
    return await _modules(core_of(request))


@endpoint("GET", f"{BASE}/modules/{{name:str}}", scope=Scope.READ, fails=UNKNOWN, tag="modules")
async def module(request: Req, name: FromPath[str]) -> ModuleView:
    """One of them."""
    for each in await _modules(core_of(request)):
        if each.name == name:
            return each
    raise NotFound(f"there is no module {name[:80]!r}", hint="`piccoloctl modules list` shows all")


@endpoint("POST", f"{BASE}/modules/{{name:str}}/restart", scope=Scope.ADMIN, fails=UNKNOWN, status=202, tag="modules")
async def restart(request: Req, name: FromPath[str]) -> Response[None]:
    """Restarts one module. Apps run on."""
    await core_of(request).supervisor({"cmd": "restart", "name": name})
    return Response(None, status_code=202)


@endpoint("GET", f"{BASE}/modules/{{name:str}}/logs", scope=Scope.ADMIN, fails=UNKNOWN, tag="modules")
async def logs(request: Req, name: FromPath[str], tail: Annotated[int, QueryParameter(ge=1, le=_TAIL_MOST)] = 200) -> ModuleLog:
    """The last lines that a module printed."""
    found = await core_of(request).supervisor({"cmd": "logs", "name": name, "tail": tail})
    return ModuleLog(lines=tuple(found))


@endpoint("GET", f"{BASE}/modules/{{name:str}}/deaths", scope=Scope.READ, fails=UNKNOWN, tag="modules")
async def deaths(request: Req, name: FromPath[str]) -> tuple[Death, ...]:
    """Why its processes ended, newest first, with their last words."""
    found = await core_of(request).supervisor({"cmd": "why", "name": name})
    return msgspec.convert(found, tuple[Death, ...])


async def _modules(core: Core) -> tuple[ModuleView, ...]:
    return msgspec.convert(await core.supervisor({"cmd": "modules"}), tuple[ModuleView, ...])


ROUTES = (modules, module, restart, logs, deaths)

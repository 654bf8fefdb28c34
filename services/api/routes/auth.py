"""Sessions of people: log in with the admin's password, which is the one that opens the store."""

from __future__ import annotations

from litestar import Response
from litestar.params import JSONBody

from piccolod.errors import Invalid
from piccolod.protocol.persistence import VerifyPassword
from services.api import cookies
from services.api.actor import Actor, Kind, Scope
from services.api.asked import BASE, Req, actor_of, core_of, source_of, written
from services.api.call import call_of
from services.api.documents import SessionView
from services.api.endpoint import COMMIT, JSON, PASSWORD, endpoint
from services.api.routes.crypto import PasswordBody


@endpoint("POST", f"{BASE}/auth/login", scope=None, fails=(*PASSWORD, *COMMIT), accepts=JSON, tag="auth")
async def login(request: Req, data: JSONBody[PasswordBody]) -> Response[SessionView]:
    """Opens a session: a cookie for the browser, and the value that its pages repeat with each change."""
    core = core_of(request)
    await core.order(VerifyPassword(password=data.password, source=source_of(request)), timeout_s=30.0)
    response: Response[SessionView] = Response(None)  # type: ignore[arg-type]
    actor = await cookies.renew(core, request, response)
    call_of(request).actor = actor
    response.content = _view(actor)
    return response


@endpoint("POST", f"{BASE}/auth/logout", scope=Scope.READ, fails=COMMIT, status=204, tag="auth")
async def logout(request: Req) -> Response[None]:
    """Ends this session for good, wherever its cookie may have been copied to."""
    actor = actor_of(request)
    if actor.kind is not Kind.SESSION:
        raise Invalid("there is no session to end", hint="revoke a token with `piccoloctl tokens revoke`")
    rev = await core_of(request).credentials.revoke(actor)
    response = written(None, rev, 204)
    cookies.forget(request, response)
    return response


@endpoint("GET", f"{BASE}/auth/session", scope=Scope.READ, asks=False, tag="auth")
async def session(request: Req) -> SessionView:
    """Who calls, and with which rights."""
    return _view(actor_of(request))


def _view(actor: Actor) -> SessionView:
    scopes = tuple(scope.label for scope in Scope if actor.may(scope))
    return SessionView(user=actor.name, kind=actor.kind.value, scopes=scopes, expires_ms=actor.expires_ms, csrf=actor.csrf)


ROUTES = (login, logout, session)

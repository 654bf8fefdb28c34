"""Sets and takes back the two cookies of a session."""

from __future__ import annotations

from typing import Any

from litestar import Response
from litestar.datastructures import Cookie

from services.api import settings
from services.api.actor import Actor
from services.api.asked import Req
from services.api.call import call_of
from services.api.core import Core
from services.api.sessions import CSRF_COOKIE, SESSION_COOKIE


async def renew(core: Core, request: Req, response: Response[Any]) -> Actor:
    """Opens a session for the admin and puts its cookies into the answer."""
    found, _ = await settings.read(core)
    lifetime_s = found.session_hours * 3600
    actor, cookie = await core.credentials.open_session("admin", lifetime_s)
    secure = call_of(request).origin.secure
    response.set_cookie(_cookie(SESSION_COOKIE, cookie, lifetime_s, secure, hidden=True))
    # The page reads this one and repeats it in a header, which a foreign page cannot.
    response.set_cookie(_cookie(CSRF_COOKIE, actor.csrf, lifetime_s, secure, hidden=False))
    return actor


def forget(request: Req, response: Response[Any]) -> None:
    secure = call_of(request).origin.secure
    response.set_cookie(_cookie(SESSION_COOKIE, "", 0, secure, hidden=True))
    response.set_cookie(_cookie(CSRF_COOKIE, "", 0, secure, hidden=False))


def _cookie(name: str, value: str, lifetime_s: int, secure: bool, *, hidden: bool) -> Cookie:
    return Cookie(
        key=name, value=value, path="/", max_age=lifetime_s, secure=secure, httponly=hidden, samesite="strict"
    )  # fmt: skip

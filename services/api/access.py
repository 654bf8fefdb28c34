"""The guard of every route: who calls, may they, is it really they and not a foreign page, and does the request fit."""

from __future__ import annotations

import hashlib
import hmac
import re
from contextlib import suppress
from typing import Any, Final

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.params import QueryParameter

from piccolod.errors import Forbidden, Invalid, Locked, PiccoloError, Problem, Unauthenticated, WrongMediaType
from services.api import origin, sessions, settings
from services.api.actor import NOBODY, Actor, Kind, Scope, root_of
from services.api.call import Call, call_of, core_of
from services.api.core import Core

LOOK_AGAIN_S: Final = 5.0  # what was revoked reads on for so long at most
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_BEARER: Final = "bearer "
_REV: Final = re.compile(r"\d{1,18}")
_IDEM: Final = re.compile(r"[\x21-\x7e]{1,128}")
_DIGEST_CHARACTERS: Final = 32
_INJECTED: Final = frozenset({"request", "data", "body", "state", "socket"})

Connection = ASGIConnection[Any, Any, Any, Any]


async def admit(connection: Connection, handler: BaseRouteHandler) -> None:
    """Raises what the caller is told; otherwise the call's actor is known from here on."""
    method = method_of(connection)
    if method == "OPTIONS":
        return
    core = core_of(connection)
    call = call_of(connection)
    call.actor = actor = await _identify(core, connection, call, handler.opt.get("scope", Scope.ADMIN))
    _check_scope(actor, handler)
    if method not in SAFE:
        _check_page(core, connection, call, actor)
        _check_media_type(connection, handler)
        _check_idempotency_key(connection)
    _check_query(connection, handler)
    if method not in SAFE and actor is not NOBODY:
        call.held.enter_context(core.module.busy())
    if handler.opt.get("leads"):
        core.check_leads()
    if handler.opt.get("moves") and call.via is None and actor.kind is Kind.SOCKET and core.mode is not None:
        with suppress(Locked):  # nothing that is sealed can be changed then
            await settings.check_admin(core, core.mode.node)
    if (wanted := connection.headers.get("piccolo-min-rev")) is not None and method in SAFE:
        await core.reach(_min_rev(wanted))


async def still(core: Core, connection: Connection, handler: BaseRouteHandler) -> bool:
    """Whether the caller of a long answer would be admitted again: what was revoked ends soon."""
    try:
        actor = await _identify(core, connection, call_of(connection), handler.opt.get("scope", Scope.ADMIN))
    except PiccoloError:
        return False  # revoked, expired, locked, or it cannot be told: who may still listen comes back
    return actor.may(handler.opt.get("scope") or Scope.READ)


def idempotency(connection: Connection, body: bytes) -> str:
    """The key of a retried write, apart for each caller and for what is asked; empty without one.

    Another call under the same key is no retry: it must not get the result of the first.
    """
    key = connection.headers.get("idempotency-key")
    if key is None:
        return ""
    asked = f"{method_of(connection)} {connection.scope['path']}?{connection.scope['query_string'].decode('latin-1')}\n"
    digest = hashlib.sha256(asked.encode() + body).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{call_of(connection).actor.caller} {key}:{digest}"


def method_of(connection: Connection) -> str:
    method: str = connection.scope["method"]  # type: ignore[typeddict-item]
    return method


async def _identify(core: Core, connection: Connection, call: Call, needed: Scope | None) -> Actor:
    if call.via is not None and call.via.as_root:
        return root_of(call.via.node)
    if call.origin.peer is not None and call.origin.peer.uid == 0:
        return core.root
    if needed is None:
        return NOBODY  # the route is for anybody: a stale cookie must not be in the way of a login
    authorization = connection.headers.get("authorization")
    if authorization is not None:
        if not authorization.lower().startswith(_BEARER):
            raise Unauthenticated("Authorization must be `Bearer TOKEN`")
        return await core.credentials.by_token(authorization[len(_BEARER) :].strip())
    cookie = connection.cookies.get(sessions.SESSION_COOKIE)
    if cookie is not None:
        return await core.credentials.by_cookie(cookie)
    return NOBODY


def _check_scope(actor: Actor, handler: BaseRouteHandler) -> None:
    needed: Scope | None = handler.opt.get("scope", Scope.ADMIN)
    if needed is None or actor.may(needed):
        return
    if actor.kind is Kind.NOBODY:
        raise Unauthenticated("this needs a session or a token", hint="log in, or send `Authorization: Bearer TOKEN`")
    raise Forbidden(f"{actor.name} has not the scope `{needed.label}`", hint="use a token with that scope")


def _check_page(core: Core, connection: Connection, call: Call, actor: Actor) -> None:
    """A foreign page must not act: not by a form of its own, and not under a name that it made resolve to this node."""
    if call.origin.peer is not None or (call.via is not None and call.via.as_root):
        return
    host, came_from = connection.headers.get("host", ""), connection.headers.get("origin")
    if came_from is not None and not origin.same_origin(came_from, host):
        raise Forbidden(f"a page of {came_from[:100]} may not do this", hint="use the dashboard of this node itself")
    if actor.kind is Kind.NOBODY and not call.origin.secure and not origin.own_host(host, core.names):
        raise Forbidden(
            f"{origin.host_name(host)[:100]!r} is not a name of this node",
            hint="use its address, localhost, or TLS",
        )
    if actor.kind is Kind.SESSION:
        sent = connection.headers.get(sessions.CSRF_HEADER, "")
        if not hmac.compare_digest(sent.encode(), actor.csrf.encode()):
            raise Forbidden(f"the header {sessions.CSRF_HEADER} is missing or wrong", hint="send the value of the session")


def _check_idempotency_key(connection: Connection) -> None:
    key = connection.headers.get("idempotency-key")
    if key is not None and not _IDEM.fullmatch(key):
        raise Invalid("Idempotency-Key must be 1 to 128 visible ASCII characters")


def _check_media_type(connection: Connection, handler: BaseRouteHandler) -> None:
    sent = connection.headers.get("content-type", "").partition(";")[0].strip().lower()
    accepts: tuple[str, ...] = handler.opt.get("accepts", ())
    has_body = connection.headers.get("content-length", "0") != "0" or "transfer-encoding" in connection.headers
    if has_body and sent not in (accepts or ("application/json",)):
        raise WrongMediaType(
            f"the body is {sent or 'of no stated type'}", hint=f"send it as {' or '.join(accepts or ('application/json',))}"
        )


def _check_query(connection: Connection, handler: BaseRouteHandler) -> None:
    """A misspelt parameter is an error: `?pruge=true` must not quietly do something else."""
    known = {
        (definition.kwarg_definition.name if isinstance(definition.kwarg_definition, QueryParameter) else None) or name
        for name, definition in handler.parsed_fn_signature.parameters.items()
        if name not in _INJECTED and name not in connection.path_params
    }
    strange = [name for name in connection.query_params if name not in known]
    if strange:
        raise Invalid(
            f"unknown query parameter {strange[0][:100]!r}",
            hint=f"known: {', '.join(sorted(known))}" if known else "this path takes none",
            errors=tuple(Problem(name[:100], "unknown") for name in strange),
        )


def _min_rev(text: str) -> int:
    if not _REV.fullmatch(text):
        raise Invalid("Piccolo-Min-Rev must be a revision, a whole number")
    return int(text)

"""Tokens of programs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from litestar import Response
from litestar.params import FromPath, JSONBody

from piccolod import clock
from piccolod.errors import NotFound
from piccolod.protocol.persistence import Commit, Document, Expect, List, Read, Write
from services.api import tokens
from services.api.actor import Scope
from services.api.asked import BASE, Req, actor_of, core_of, idem_of, written
from services.api.credentials import TOKENS
from services.api.documents import NewToken, TokenView
from services.api.endpoint import COMMIT, JSON, STORE, UNKNOWN, endpoint
from services.api.tokens import TokenRecord

_YEAR_S = 366 * 86400


class ScopeName(StrEnum):
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


class TokenBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`scope` includes the ones below it; `expires_in_s` 0 = never."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}\Z")]
    scope: ScopeName = ScopeName.READ
    expires_in_s: Annotated[int, msgspec.Meta(ge=0, le=10 * _YEAR_S)] = 0


@endpoint("GET", f"{BASE}/auth/tokens", scope=Scope.ADMIN, fails=STORE, tag="auth")
async def list_tokens(request: Req) -> tuple[TokenView, ...]:
    """All tokens, without their secrets."""
    found = await core_of(request).ask(List(collection=TOKENS))
    return tuple(_view(each) for each in found.documents)


@endpoint("POST", f"{BASE}/auth/tokens", scope=Scope.ADMIN, fails=COMMIT, accepts=JSON, status=201, tag="auth")
async def create(request: Req, data: JSONBody[TokenBody]) -> Response[NewToken]:
    """A new token. Its text is shown this once; only a hash is kept."""
    number, text, digest = tokens.mint()
    now_ms = clock.wall_ms()
    record = TokenRecord(
        name=data.name,
        hash=digest,
        scope=data.scope.value,
        created_ms=now_ms,
        expires_ms=now_ms + data.expires_in_s * 1000 if data.expires_in_s else 0,
        created_by=actor_of(request).name,
    )
    order = Commit(
        writes=(Write(collection=TOKENS, id=number, body=msgspec.to_builtins(record)),),
        expect=(Expect(collection=TOKENS, id=number, generation=0),),
        author=actor_of(request).name,
    )
    rev = (await core_of(request).order(order)).rev
    made = NewToken(
        id=number, name=data.name, scopes=_scopes(record), expires_ms=record.expires_ms, token=text
    )  # fmt: skip
    return written(made, rev, 201)


@endpoint("DELETE", f"{BASE}/auth/tokens/{{number:str}}", scope=Scope.ADMIN, fails=(*COMMIT, *UNKNOWN), status=204, tag="auth")
async def revoke(request: Req, number: FromPath[str]) -> Response[None]:
    """Ends a token: the next call with it is refused."""
    core = core_of(request)
    try:
        await core.ask(Read(collection=TOKENS, id=number))
    except NotFound:
        raise NotFound(f"there is no token {number[:40]!r}", hint="`piccoloctl tokens list` shows their ids") from None
    order = Commit(writes=(Write(collection=TOKENS, id=number, body=None),), author=actor_of(request).name)
    return written(None, (await core.order(order, idem=await idem_of(request))).rev, 204)


def _view(document: Document) -> TokenView:
    record = tokens.record_of(document.body)
    return TokenView(
        id=document.id,
        name=record.name,
        scopes=_scopes(record),
        created_ms=record.created_ms,
        expires_ms=record.expires_ms,
        created_by=record.created_by,
    )


def _scopes(record: TokenRecord) -> tuple[str, ...]:
    highest = Scope[record.scope.upper()]
    return tuple(scope.label for scope in Scope if scope <= highest)


ROUTES = (list_tokens, create, revoke)

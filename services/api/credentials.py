"""Who holds a session or a token, asked of the control store at each call: what was revoked is refused at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from piccolod import clock
from piccolod.errors import Conflict, NotFound, Unauthenticated
from piccolod.protocol.persistence import Commit, Document, Expect, GetCryptoStatus, List, Read, Write
from services.api import sessions, tokens
from services.api.actor import Actor, Kind, Scope
from services.api.sessions import Session

if TYPE_CHECKING:
    from services.api.core import Core

USERS: Final = "users"
TOKENS: Final = "tokens"
ADMIN: Final = "admin"
_KEY: Final = "session-key"
_REVOKED: Final = "revoked-"
_TRIES: Final = 3


class Credentials:
    """Raises Locked while the store is: then nobody can be told from anybody."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def by_token(self, token: str) -> Actor:
        parsed = tokens.parse(token)
        if parsed is not None:
            number, secret = parsed
            try:
                found = await self._core.ask(Read(collection=TOKENS, id=number))
            except NotFound:
                found = None
            actor = found and tokens.judge(number, secret, tokens.record_of(found.body), clock.wall_ms())
            if actor:
                return actor
        raise Unauthenticated("this token is not known, was revoked, or has expired", hint="make one: piccoloctl tokens create")

    async def by_cookie(self, cookie: str) -> Actor:
        documents = (await self._core.ask(List(collection=USERS))).documents
        found = _key_of(documents)
        key = await self._bound(found) if found else ""
        session = sessions.read(key, cookie, int(time.time())) if key else None
        if session is None or any(each.id == f"{_REVOKED}{session.sid}" for each in documents):
            raise Unauthenticated("this session has ended", hint="log in again")
        return _actor(key, session)

    async def open_session(self, author: str, lifetime_s: int) -> tuple[Actor, str]:
        """A new session and its cookie. A commit only when there is no key yet."""
        key = await self._bound(await self._key(author))
        session, cookie = sessions.issue(key, int(time.time()), lifetime_s)
        return _actor(key, session), cookie

    async def revoke(self, actor: Actor) -> int:
        """Ends a session for good, and forgets the revocations of those that have expired by themselves. The rev."""
        documents = (await self._core.ask(List(collection=USERS))).documents
        now_ms = clock.wall_ms()
        over = [
            Write(collection=USERS, id=each.id, body=None)
            for each in documents
            if each.id.startswith(_REVOKED) and int(each.body.get("expires_ms", 0)) < now_ms
        ]
        ended = Write(collection=USERS, id=f"{_REVOKED}{actor.session}", body={"expires_ms": actor.expires_ms})
        return (await self._core.order(Commit(writes=(*over, ended), author=actor.name))).rev

    async def end_all_sessions(self, author: str) -> int:
        """A new key: every cookie that was ever given is void. The rev."""
        documents = (await self._core.ask(List(collection=USERS))).documents
        void = [Write(collection=USERS, id=each.id, body=None) for each in documents if each.id.startswith(_REVOKED)]
        fresh = Write(collection=USERS, id=_KEY, body=_key_body(sessions.new_key()))
        return (await self._core.order(Commit(writes=(*void, fresh), author=author))).rev

    async def _bound(self, key: str) -> str:
        return sessions.bound(key, (await self._core.ask(GetCryptoStatus())).keyset_version)

    async def _key(self, author: str) -> str:
        for _ in range(_TRIES):
            if key := _key_of((await self._core.ask(List(collection=USERS))).documents):
                return key
            fresh = Write(collection=USERS, id=_KEY, body=_key_body(sessions.new_key()))
            absent = Expect(collection=USERS, id=_KEY, generation=0)
            try:
                await self._core.order(Commit(writes=(fresh,), expect=(absent,), author=author))
            except Conflict:
                continue  # another login was first
        raise Conflict("the key of sessions changes too often", hint="try again")


def _actor(key: str, session: Session) -> Actor:
    return Actor(
        Kind.SESSION, ADMIN, Scope.ADMIN, session.sid, sessions.csrf(key, session), session.expires_s * 1000
    )  # fmt: skip


def _key_of(documents: tuple[Document, ...]) -> str:
    for each in documents:
        if each.id == _KEY:
            return str(each.body["key"])
    return ""


def _key_body(key: str) -> dict[str, Any]:
    return {"key": key, "created_ms": clock.wall_ms()}

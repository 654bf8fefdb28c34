"""Tokens to join with: how long they live, what the list says of them, and how many there may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piccolod import clock
from piccolod.errors import (
    Conflict,
    Invalid,
    NotFound,
    TooMany,
)
from piccolod.pki import token as tokens
from piccolod.pki.identity import Role
from piccolod.protocol.joining import (
    CreateJoinToken,
    GetJoinTokens,
    RevokeJoinToken,
)
from services.persistence import admission
from services.persistence.admission import TOKENS

from .conftest import HOUR_MS
from .desk import Desk, Machine, with_desk


def test_a_token_lives_an_hour_and_a_day_at_most(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        made = await desk.ask(CreateJoinToken(author="admin"))
        assert abs(made.expires_ms - clock.wall_ms() - HOUR_MS) < 60_000 and made.token not in repr(made)
        day = await desk.ask(CreateJoinToken(author="admin", ttl_s=86_400.0))
        assert abs(day.expires_ms - clock.wall_ms() - 24 * HOUR_MS) < 60_000
        for ttl_s in (86_401.0, 59.0, 0.0, -1.0, float("nan"), float("inf")):
            assert type(await desk.refused(CreateJoinToken(author="admin", ttl_s=ttl_s))) is Invalid

    with_desk(tmp_path, work)


def test_no_secret_of_a_token_rests_anywhere(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        token = await desk.token()
        document = desk.state.get(TOKENS, token.id)
        assert document is not None and token.secret.encode() not in document.body
        assert token.secret not in str(await desk.ask(GetJoinTokens()))

    with_desk(tmp_path, work)


def test_the_list_says_what_became_of_each_token_and_forgets_after_a_week(tmp_path: Path, later: Any) -> None:
    async def work(desk: Desk) -> None:
        used, revoked, expired = await desk.token(), await desk.token(), await desk.token(ttl_s=60.0)
        await desk.ask(Machine("n2").redeem(used))
        await desk.ask(RevokeJoinToken(id=revoked.id, author="admin"))
        before = desk.rev
        await desk.ask(RevokeJoinToken(id=revoked.id, author="admin"))
        assert desk.rev == before, "revoking again changes nothing"
        later(0.5)
        fresh = await desk.token(Role.WITNESS)
        found = {each.id: (each.state.value, each.role.value) for each in (await desk.ask(GetJoinTokens())).tokens}
        assert found == {
            used.id: ("used", "member"), revoked.id: ("revoked", "member"), expired.id: ("expired", "member"),
            fresh.id: ("open", "witness"),
        }  # fmt: skip
        assert (await desk.ask(GetJoinTokens())).tokens[0].id == fresh.id, "the newest first"
        later(8 * 24)
        last = await desk.token()
        assert [each.id for each in (await desk.ask(GetJoinTokens())).tokens] == [last.id]

    with_desk(tmp_path, work)


def test_a_token_that_is_unknown_or_used_cannot_be_revoked(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        token = await desk.token()
        assert type(await desk.refused(RevokeJoinToken(id="00000000", author="admin"))) is NotFound
        await desk.ask(Machine("n2").redeem(token))
        refusal = await desk.refused(RevokeJoinToken(id=token.id, author="admin"))
        assert type(refusal) is Conflict and "nodes remove n2" in refusal.hint

    with_desk(tmp_path, work)


def test_open_tokens_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "OPEN_MOST", 2)

    async def work(desk: Desk) -> None:
        first = await desk.token()
        await desk.token()
        assert type(await desk.refused(CreateJoinToken(author="admin"))) is TooMany
        await desk.ask(RevokeJoinToken(id=first.id, author="admin"))
        await desk.token()

    with_desk(tmp_path, work)


def test_a_node_alone_has_nothing_to_join(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        for request in (CreateJoinToken(author="admin"), Machine("n2").redeem(tokens.issue("0" * 64))):
            refusal = await desk.refused(request)
            assert type(refusal) is Conflict and "cluster init" in refusal.hint

    with_desk(tmp_path, work, member=False)

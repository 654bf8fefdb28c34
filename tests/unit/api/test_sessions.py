from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api import sessions, tokens
from services.api.actor import Scope

KEY = sessions.new_key()
NOW = 1_800_000_000


def test_a_cookie_opens_its_session_until_it_expires() -> None:
    session, cookie = sessions.issue(KEY, NOW, 3600)
    assert sessions.read(KEY, cookie, NOW) == session
    assert sessions.read(KEY, cookie, NOW + 3599) == session
    assert sessions.read(KEY, cookie, NOW + 3600) is None


def test_a_cookie_from_the_future_is_refused() -> None:
    _, cookie = sessions.issue(KEY, NOW + 3600, 7200)
    assert sessions.read(KEY, cookie, NOW) is None


def test_another_key_signs_another_session() -> None:
    _, cookie = sessions.issue(KEY, NOW, 3600)
    assert sessions.read(sessions.new_key(), cookie, NOW) is None


def test_no_field_of_a_cookie_can_be_changed() -> None:
    session, cookie = sessions.issue(KEY, NOW, 3600)
    sid, issued, expires, mac = cookie.split(".")
    forged = [
        f"{sid}.{issued}.{int(expires) + 1}.{mac}",
        f"{sid}.{int(issued) - 1}.{expires}.{mac}",
        f"{'0' * 32}.{issued}.{expires}.{mac}",
        f"{sid}.{issued}.{expires}.{'0' * 64}",
        f"{sid}.{issued}.{expires}.{sessions.csrf(KEY, session)}",
        f"{cookie}\n",
        f"{cookie}.",
        f"{sid}.{issued}0.{expires}.{mac}",
    ]
    assert [sessions.read(KEY, text, NOW) for text in forged] == [None] * len(forged)


@given(st.text(max_size=300))
def test_garbage_is_no_session_and_no_token(text: str) -> None:
    assert sessions.read(KEY, text, NOW) is None
    assert tokens.parse(text) is None


def test_the_csrf_value_belongs_to_one_session() -> None:
    one, _ = sessions.issue(KEY, NOW, 60)
    two, _ = sessions.issue(KEY, NOW, 60)
    assert sessions.csrf(KEY, one) == sessions.csrf(KEY, one) != sessions.csrf(KEY, two)


def record(digest: str, expires_ms: int = 0) -> tokens.TokenRecord:
    return tokens.TokenRecord(name="ci", hash=digest, scope="write", created_ms=1, expires_ms=expires_ms, created_by="root")


def test_a_token_is_known_by_its_secret_and_not_kept() -> None:
    number, text, digest = tokens.mint()
    parsed = tokens.parse(text)
    assert parsed is not None
    assert parsed[0] == number
    assert parsed[1] not in digest
    actor = tokens.judge(*parsed, record(digest), 5)
    assert actor is not None
    assert actor.name == f"token:ci/{number}"
    assert [actor.may(scope) for scope in (Scope.READ, Scope.WRITE, Scope.ADMIN)] == [True, True, False]


def test_a_wrong_or_expired_token_is_nobodys() -> None:
    number, text, digest = tokens.mint()
    secret = text.rpartition(f"{number}_")[2]
    assert tokens.judge(number, "x" * 43, record(digest), 5) is None
    assert tokens.judge(number, secret, record(digest, expires_ms=5), 5) is None
    assert tokens.judge(number, secret, record(digest, expires_ms=6), 5) is not None


@pytest.mark.parametrize("text", ["pic_0_x", "pic_0123456789ab_short", "PIC_0123456789ab_" + "x" * 43, ""])
def test_what_has_not_the_form_of_a_token_is_none(text: str) -> None:
    assert tokens.parse(text) is None

"""Who may do what: sessions, tokens, foreign pages, the first setup."""

from __future__ import annotations

import httpx
import msgspec
import pytest

from piccolod.errors import Conflict
from piccolod.protocol.apps import ChangeApp, UpdateApp
from piccolod.protocol.persistence import (
    Commit,
    CryptoStatus,
    GetCryptoStatus,
    NewRecovery,
    RecoveryWords,
    Setup,
    Unlock,
    VerifyPassword,
)
from tests.unit.api.node import PASSWORD, Client, Node, example, running


def login(node: Node) -> tuple[Client, str]:
    client = node.tcp()
    answer = client.post("/auth/login", json={"password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return client, answer.json()["csrf"]


def test_root_on_the_unix_socket_is_admin_without_a_password(node: Node) -> None:
    with node.unix() as client:
        assert client.get("/auth/session").json() == {
            "user": "root", "kind": "socket", "scopes": ["read", "write", "admin"], "expires_ms": 0, "csrf": "",
        }  # fmt: skip


def test_another_user_of_the_unix_socket_is_nobody(node: Node) -> None:
    import services.api.connection as connection
    from services.api.origin import Peer

    before = connection._peer_of
    connection._peer_of = lambda transport: Peer(1, 1000)
    try:
        with node.unix() as client:
            assert client.get("/auth/session").status_code == 401
    finally:
        connection._peer_of = before


def test_nobody_gets_in_by_tcp(node: Node) -> None:
    with node.tcp() as client:
        for path in ("/status", "/apps", "/secrets", "/auth/tokens", "/metrics"):
            answer = client.get(path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_login_opens_a_session_whose_cookies_are_closed_to_others(node: Node) -> None:
    client, csrf = login(node)
    with client:
        cookies = {each.name: each for each in client.http.cookies.jar}
        assert set(cookies) == {"piccolo_session", "piccolo_csrf"}
        assert cookies["piccolo_session"].has_nonstandard_attr("HttpOnly")
        assert not cookies["piccolo_csrf"].has_nonstandard_attr("HttpOnly")
        assert {each.get_nonstandard_attr("SameSite") for each in cookies.values()} == {"strict"}
        assert cookies["piccolo_csrf"].value == csrf
        assert client.get("/auth/session").json()["user"] == "admin"


def test_under_tls_of_a_trusted_proxy_the_cookies_are_secure() -> None:
    with running(api='trusted_proxies = ["127.0.0.1"]') as node, node.tcp() as client:
        headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.5"}
        answer = client.post("/auth/login", json={"password": PASSWORD}, headers=headers)
        assert all("Secure" in each for each in answer.headers.get_list("set-cookie"))
        assert "strict-transport-security" in answer.headers
        assert node.modules.asked(VerifyPassword)[0].source == "203.0.113.5"


def test_the_first_login_commits_a_key_and_the_next_ones_nothing(node: Node) -> None:
    for _ in range(3):
        login(node)[0].http.close()
    assert len(node.modules.asked(Commit)) == 1
    assert ("users", "session-key") in node.modules.documents


def test_two_first_logins_agree_on_one_key(node: Node) -> None:
    commits = iter([Conflict("another was first")])
    real = node.modules._Commit

    async def race(request: Commit, timeout_s: float) -> object:
        for error in commits:
            await real(request, timeout_s)
            raise error
        return await real(request, timeout_s)

    node.modules._Commit = race  # type: ignore[method-assign, assignment]
    client, _ = login(node)
    with client:
        assert client.get("/auth/session").status_code == 200


def test_a_wrong_password_is_refused_and_a_limited_source_is_told_when_to_come_back(node: Node) -> None:
    with node.tcp() as client:
        answer = client.post("/auth/login", json={"password": "no"})
        assert (answer.status_code, answer.json()["code"]) == (401, "wrong_password")
        assert not client.http.cookies
    from piccolod.errors import TooMany

    node.modules.fail_kinds[VerifyPassword] = TooMany("too many", retry_after_s=6.2)
    with node.tcp() as client:
        answer = client.post("/auth/login", json={"password": PASSWORD})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")


def test_a_change_by_cookie_needs_the_csrf_value(node: Node) -> None:
    client, csrf = login(node)
    with client:
        body = {"title": "home"}
        assert client.put("/settings", json=body).status_code == 403
        assert client.put("/settings", json=body, headers={"X-CSRF-Token": "0" * 64}).status_code == 403
        assert client.put("/settings", json=body, headers={"X-CSRF-Token": "é".encode()}).status_code == 403
        assert client.put("/settings", json=body, headers={"X-CSRF-Token": csrf}).status_code == 200
        assert client.get("/settings").json()["title"] == "home"


def test_the_csrf_value_of_another_session_does_not_fit(node: Node) -> None:
    client, _ = login(node)
    other, csrf = login(node)
    with client, other:
        assert client.put("/settings", json={}, headers={"X-CSRF-Token": csrf}).status_code == 403


def test_a_logout_ends_the_session_for_every_copy_of_its_cookie(node: Node) -> None:
    client, csrf = login(node)
    stolen = dict(client.http.cookies)
    with client, node.tcp(cookies=stolen) as thief:
        assert thief.get("/auth/session").status_code == 200
        answer = client.post("/auth/logout", headers={"X-CSRF-Token": csrf})
        assert (answer.status_code, answer.headers["piccolo-rev"]) == (204, str(node.modules.rev))
        assert not client.http.cookies
        assert thief.get("/auth/session").status_code == 401


def test_revocations_that_have_expired_are_forgotten_by_the_next_one(node: Node) -> None:
    from piccolod.protocol.persistence import Document

    client, csrf = login(node)
    node.modules.documents["users", "revoked-old"] = Document(id="revoked-old", generation=1, body={"expires_ms": 5})
    with client:
        client.post("/auth/logout", headers={"X-CSRF-Token": csrf})
    assert ("users", "revoked-old") not in node.modules.documents


def test_a_session_outlives_the_module(node: Node) -> None:
    client, _ = login(node)
    cookies = dict(client.http.cookies)
    client.http.close()
    with running() as other:
        other.modules.documents = node.modules.documents
        with other.tcp(cookies=cookies) as again:
            assert again.get("/auth/session").status_code == 200


def test_another_password_ends_all_sessions_but_renews_the_callers(node: Node) -> None:
    client, csrf = login(node)
    other, _ = login(node)
    with client, other:
        body = {"old": PASSWORD, "new": "new"}
        answer = client.post("/crypto/password", json=body, headers={"X-CSRF-Token": csrf})
        assert answer.status_code == 200
        assert client.get("/auth/session").status_code == 200
        assert other.get("/auth/session").status_code == 401


def test_another_password_ends_a_session_even_when_nobody_lived_to_end_it(node: Node) -> None:
    client, _ = login(node)
    with client:
        assert client.get("/auth/session").status_code == 200
        now = example(CryptoStatus)
        node.modules.replies[GetCryptoStatus] = msgspec.structs.replace(now, keyset_version=now.keyset_version + 1)
        assert client.get("/auth/session").status_code == 401


def test_new_recovery_words_end_other_sessions_and_renew_the_callers(node: Node) -> None:
    client, csrf = login(node)
    other, _ = login(node)
    now = example(CryptoStatus)

    def words(_: NewRecovery) -> RecoveryWords:
        node.modules.replies[GetCryptoStatus] = msgspec.structs.replace(now, keyset_version=now.keyset_version + 1)
        return RecoveryWords(words="w")

    node.modules.replies[NewRecovery] = words
    with client, other:
        assert client.post("/crypto/recovery", json={"password": "p"}, headers={"X-CSRF-Token": csrf}).json() == {"words": "w"}
        assert client.get("/auth/session").status_code == 200
        assert other.get("/auth/session").status_code == 401


def test_a_forged_cookie_is_refused(node: Node) -> None:
    client, _ = login(node)
    cookie = client.http.cookies["piccolo_session"]
    client.http.close()
    for forged in (cookie[:-1] + ("0" if cookie[-1] != "0" else "1"), cookie[1:], "x", ""):
        with node.tcp(headers={"Cookie": f"piccolo_session={forged}"}) as thief:
            assert thief.get("/auth/session").status_code == 401


def test_tokens_have_scopes_and_each_includes_the_ones_below(node: Node) -> None:
    got = {}
    for scope in ("read", "write", "admin"):
        with node.token(scope) as client:
            got[scope] = [
                client.get("/apps").status_code,
                client.post("/apps/x/start").status_code,
                client.post("/store/check").status_code,
            ]
    assert got == {"read": [200, 403, 403], "write": [200, 200, 403], "admin": [200, 200, 200]}


def test_a_revoked_token_is_refused_at_once(node: Node) -> None:
    with node.unix() as root, node.token("read") as client:
        assert client.get("/apps").status_code == 200
        (token,) = root.get("/auth/tokens").json()
        assert "hash" not in token
        assert root.delete(f"/auth/tokens/{token['id']}").status_code == 204
        assert client.get("/apps").status_code == 401


def test_only_the_hash_of_a_token_is_stored(node: Node) -> None:
    with node.unix() as root:
        made = root.post("/auth/tokens", json={"name": "ci", "scope": "read", "expires_in_s": 60}).json()
    stored = node.modules.documents["tokens", made["id"]].body
    assert made["token"].split("_", 2)[2] not in str(stored)
    assert stored["expires_ms"] > stored["created_ms"]


@pytest.mark.parametrize("header", ["Bearer", "Bearer x", "Basic YTpi", "Bearer pic_000000000000_" + "x" * 43, "é"])
def test_a_bad_authorization_is_refused_even_beside_a_good_cookie(node: Node, header: str) -> None:
    client, _ = login(node)
    with client:
        assert client.get("/apps", headers={"Authorization": header.encode()}).status_code == 401


def test_while_locked_nobody_can_be_told_from_anybody(node: Node) -> None:
    with node.token("admin") as client:
        node.modules.locked = True
        answer = client.get("/apps")
        assert (answer.status_code, answer.json()["code"]) == (423, "locked")
        assert client.get("/health/live").status_code == 200
        assert client.get("/crypto/status").status_code == 200


def test_a_foreign_page_may_not_act(node: Node) -> None:
    with node.tcp(headers={"Origin": "http://evil.example"}) as client:
        assert client.post("/auth/login", json={"password": PASSWORD}).status_code == 403
        assert client.post("/crypto/setup", json={"password": "p"}).status_code == 403
    assert node.modules.asked(VerifyPassword) == node.modules.asked(Setup) == []


def test_a_name_that_was_made_to_resolve_here_may_not_act_without_proof(node: Node) -> None:
    with node.tcp(headers={"Host": "evil.example", "Origin": "http://evil.example"}) as client:
        for path, body in (("/crypto/setup", {"password": "p"}), ("/crypto/unlock", {"password": "p"})):
            assert client.post(path, json=body).status_code == 403
    with node.token("write") as client:  # who has a token is no page
        assert client.post("/apps/x/start", headers={"Host": "piccolo.example"}).status_code == 200


def test_a_form_of_another_page_is_not_json(node: Node) -> None:
    with node.tcp() as client:
        answer = client.post("/crypto/setup", content=b'{"password": "p"}', headers={"Content-Type": "text/plain"})
        assert answer.status_code == 415
    assert node.modules.asked(Setup) == []


def test_the_first_setup_is_for_who_is_here(node: Node) -> None:
    with node.tcp() as local, node.unix() as root:
        assert local.post("/crypto/setup", json={"password": "p"}).status_code == 201
        assert root.post("/crypto/setup", json={"password": "p"}).status_code == 201


def remote(node: Node) -> Client:
    """A client on another machine, as a trusted proxy tells."""
    return node.tcp(headers={"X-Forwarded-For": "203.0.113.5"})


def test_the_first_setup_is_not_for_who_is_elsewhere() -> None:
    with running(api='trusted_proxies = ["127.0.0.1"]') as node, remote(node) as client:
        answer = client.post("/crypto/setup", json={"password": "p"})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert node.modules.asked(Setup) == []


def test_the_code_lets_the_first_setup_be_done_from_elsewhere_until_it_is_guessed_at() -> None:
    extra = '[security]\nsetup_from = "code"'
    with running(extra, 'trusted_proxies = ["127.0.0.1"]') as node, remote(node) as client:
        code = node.service._core.setup_code.text
        assert client.post("/crypto/setup", json={"password": "p", "code": "WRONG"}).status_code == 403
        assert client.post("/crypto/setup", json={"password": "p", "code": code.lower()}).status_code == 201
        for _ in range(20):
            client.post("/crypto/setup", json={"password": "p", "code": "WRONG"})
        assert client.post("/crypto/setup", json={"password": "p", "code": code}).status_code == 403


def test_who_guesses_is_named_to_the_limiter(node: Node) -> None:
    with node.tcp() as client, node.unix() as root:
        client.post("/crypto/unlock", json={"password": "p"})
        root.post("/crypto/unlock", json={"password": "p"})
    assert [each.source for each in node.modules.asked(Unlock)] == ["127.0.0.1", "uid:0"]


def test_every_management_call_is_audited_accepted_or_refused(node: Node) -> None:
    with node.tcp() as nobody, node.unix() as root:
        nobody.get("/apps")
        nobody.post("/crypto/lock")
        root.get("/apps")
        last = root.post("/apps/x/start")
    assert [(each.actor, each.source, each.action, each.status, each.code) for each in node.audits()] == [
        ("nobody", "127.0.0.1", "GET /api/v1/apps", 401, "unauthenticated"),
        ("nobody", "127.0.0.1", "POST /api/v1/crypto/lock", 401, "unauthenticated"),
        ("root", "uid:0", "POST /api/v1/apps/x/start", 200, ""),
    ]
    assert node.audits()[-1].request_id == last.headers["x-request-id"]


def test_no_secret_is_in_the_audit(node: Node) -> None:
    with node.unix() as root, node.tcp() as client:
        root.put("/secrets/db", json={"value": "hunter2"})
        client.post("/auth/login", json={"password": "hunter2"})
    assert "hunter2" not in str(node.audits())


def test_consent_to_privileged_is_for_admins(node: Node) -> None:
    with node.token("write") as client:
        answer = client.post("/apps?consent=true", content=b"name: x", headers={"Content-Type": "application/yaml"})
        assert answer.status_code == 403
        assert client.post("/apps/x/update?consent=true").status_code == 403
        assert client.post("/apps/x/revert?consent=true").status_code == 403
    assert node.modules.asked(UpdateApp) == node.modules.asked(ChangeApp) == []
    with node.token("admin") as client:
        assert client.post("/apps/x/update?consent=true").status_code == 200
        assert client.post("/apps/x/revert?consent=true").status_code == 200
    assert [each.consent for each in (*node.modules.asked(UpdateApp), *node.modules.asked(ChangeApp))] == [True, True]


def test_headers_keep_browsers_strict(node: Node) -> None:
    with node.tcp() as client:
        for answer in (client.get("/api/docs"), client.get("/api/openapi.json"), client.get("/nothing")):
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
        page = client.get("/api/docs").text
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_answer_of_a_login_is_not_kept_by_the_client_library(node: Node) -> None:
    with node.tcp() as client:
        answer: httpx.Response = client.post("/auth/login", json={"password": PASSWORD})
        assert PASSWORD not in answer.text

"""Every failure has the one shape, whatever is sent."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from piccolod.errors import Invalid as Bad
from piccolod.errors import LeaderHint, Locked, NotLeader, Problem, TooMany
from piccolod.protocol.apps import ChangeApp, InstallApp, ListApps
from piccolod.protocol.cluster import JoinCluster
from piccolod.protocol.persistence import Unlock
from tests.unit.api.node import Node, running

YAML = {"Content-Type": "application/yaml"}


def raw(node: Node, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """What the server says to bytes on a connection: status, headers, body."""
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as sock:
        sock.sendall(data)
        got = b""
        while chunk := sock.recv(65536):
            got += chunk
    head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


@pytest.mark.parametrize("path", ["/", "/api", "/api/v1", "/api/v1/nothing", "/api/foo", "/api/schema/openapi.json", "/..%2f"])
def test_an_unknown_path_is_404(node: Node, path: str) -> None:
    with node.tcp() as client:
        answer = client.http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_wrong_method_is_405_and_the_right_ones_are_named(node: Node) -> None:
    with node.unix() as client:
        answer = client.http.request("PATCH", "/api/v1/apps/x")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert {"GET", "PUT", "DELETE"} <= set(answer.headers["allow"].replace(" ", "").split(","))


def test_a_body_that_is_too_large_is_413(node: Node) -> None:
    with node.unix() as client:
        answer = client.put("/settings", json={"title": "x" * 70_000})
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        parts = (b"x" * 1024 for _ in range(80))  # no length is announced
        answer = client.put("/settings", content=parts, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413


def test_a_manifest_may_be_larger_but_not_any_size(node: Node) -> None:
    with node.unix() as client:
        assert client.post("/apps", content=b"x" * 300_000, headers=YAML).status_code == 201
        assert client.post("/apps", content=b"x" * 600_000, headers=YAML).status_code == 413


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_a_body_of_another_type_is_415(node: Node, kind: str) -> None:
    with node.unix() as client:
        answer = client.put("/settings", content=b"{}", headers={"Content-Type": kind} if kind else {})
    assert (answer.status_code, answer.json()["code"]) == (415, "wrong_media_type")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b"7", b'"x"', b"\xff\xfe", b"\x00", b'{"title": 7}', b'{"titel": "x"}', b'{"session_hours": 0}',
     b'{"session_hours": 1e400}', b'{"title": "' + b"x" * 101 + b'"}', b'{"a":' * 5000, b"[" * 20_000, b"[" * 3_000,
     b'{"title":' + b"[" * 900],
)  # fmt: skip
def test_a_garbage_body_is_400_and_changes_nothing(node: Node, body: bytes) -> None:
    with node.unix() as client:
        before = node.modules.rev
        answer = client.put("/settings", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid"), answer.text
    assert node.modules.rev == before
    assert node.module.errors == []


def test_a_mistake_in_a_body_names_its_place(node: Node) -> None:
    with node.unix() as client:
        answer = client.put("/settings", json={"session_hours": 5000})
    assert "session_hours" in json.dumps(answer.json()["errors"]), answer.text


@pytest.mark.parametrize("query", ["tail=x", "tail=0", "tail=10001", "tail=1&tail=2x", "tail=99999999999999999999"])
def test_a_garbage_parameter_is_400(node: Node, query: str) -> None:
    with node.unix() as client:
        assert client.get(f"/modules/apps/logs?{query}").status_code == 400


def test_a_misspelt_parameter_is_named(node: Node) -> None:
    with node.unix() as client:
        answer = client.delete("/apps/x?pruge=true")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["path"] == "pruge"
    assert "purge" in answer.json()["hint"]


@pytest.mark.parametrize("body", [b"\xff\xfe", b"   ", b""])
def test_a_manifest_that_is_no_text_is_400(node: Node, body: bytes) -> None:
    with node.unix() as client:
        assert client.post("/apps", content=body, headers=YAML).status_code == 400
    assert node.modules.asked(InstallApp) == []


def test_every_mistake_of_a_manifest_comes_through_with_its_place(node: Node) -> None:
    node.modules.fail_kinds[InstallApp] = Bad(
        "2 mistakes", errors=(Problem("name", "bad", 1, 7), Problem("image", "missing", 3, 1)), hint="read the manual"
    )
    with node.unix() as client:
        problem = client.post("/apps", content=b"name: x", headers=YAML).json()
    assert problem["errors"] == [
        {"path": "name", "line": 1, "column": 7, "message": "bad"},
        {"path": "image", "line": 3, "column": 1, "message": "missing"},
    ]
    assert (problem["detail"], problem["hint"]) == ("2 mistakes", "read the manual")


def test_our_own_bug_is_500_without_a_word_of_its_inside(node: Node) -> None:
    def broken(request: Any) -> Any:
        raise ZeroDivisionError("the secret of the house")

    node.modules.replies[ListApps] = broken
    with node.unix() as client:
        answer = client.get("/apps")
    assert (answer.status_code, answer.json()["code"]) == (500, "failed")
    assert "secret of the house" not in answer.text
    assert "secret of the house" in str(node.module.errors)
    assert node.module.errors[0]["request_id"] == answer.json()["request_id"]


def test_locked_is_423_and_a_limit_says_when_to_come_back(node: Node) -> None:
    with node.unix() as client:
        node.modules.fail_kinds[ChangeApp] = Locked("locked")
        assert client.post("/apps/x/stop").status_code == 423
        node.modules.fail_kinds[Unlock] = TooMany("slowly", retry_after_s=2.4)
        answer = client.post("/crypto/unlock", json={"password": "p"})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")


LEADER = NotLeader("n2 leads", leader=LeaderHint("n2", "10.77.0.2", "https://10.77.0.2:8080/", 9))


def test_a_program_is_sent_to_the_leader_and_a_browser_is_not(node: Node) -> None:
    with node.token("write") as client, node.unix() as root:
        node.modules.fail_kinds[ChangeApp] = LEADER
        answer = client.http.post("/api/v1/apps/x/stop", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (307, "https://10.77.0.2:8080/api/v1/apps/x/stop")
        assert (answer.headers["piccolo-leader"], answer.headers["piccolo-epoch"]) == ("n2", "9")
        assert client.post("/apps/x/stop", headers={"Piccolo-Redirect": "never"}).status_code == 409
        refused = root.post("/apps/x/stop")
        assert refused.status_code == 409
        assert refused.json()["leader"] == {
            "node": "n2", "address": "10.77.0.2", "url": "https://10.77.0.2:8080/", "epoch": 9,
        }  # fmt: skip


def test_a_request_to_join_is_sent_on_to_no_leader_of_the_other_cluster(node: Node) -> None:
    with node.token("admin") as client:
        node.modules.fail_kinds[JoinCluster] = LEADER
        answer = client.http.post(
            "/api/v1/cluster/join", json={"address": "10.77.0.1", "token": "t"}, follow_redirects=False
        )  # fmt: skip
    assert (answer.status_code, answer.json()["detail"]) == (409, "n2 leads")


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100_000,  # it would go on
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS where none is spoken
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nzz\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400_and_the_end_of_the_connection(node: Node, data: bytes) -> None:
    status, headers, body = raw(node, data)
    assert 400 <= status < 500
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["status"] == status


def test_a_websocket_is_not_spoken_here(node: Node) -> None:
    status, _, _ = raw(
        node,
        b"GET /api/v1/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    )
    assert status == 200  # the upgrade is ignored, as HTTP allows


@pytest.mark.parametrize("key", ["", "x" * 129, "a b", "\x7f"])
def test_a_bad_idempotency_key_is_400(node: Node, key: str) -> None:
    with node.unix() as client:
        assert client.post("/apps/x/start", headers={"Idempotency-Key": key.encode()}).status_code == 400
    assert node.modules.asked(ChangeApp) == []


@pytest.mark.parametrize("rev", ["x", "-1", "", "9" * 30])
def test_a_bad_min_rev_is_400(node: Node, rev: str) -> None:
    with node.unix() as client:
        assert client.get("/apps", headers={"Piccolo-Min-Rev": rev}).status_code == 400


def test_a_port_that_is_taken_is_named_and_the_unix_socket_serves() -> None:
    from piccolod.errors import Busy

    with running(refuse_listen=Busy("127.0.0.1:8080/tcp is taken by nginx (pid 71)")) as node, node.unix() as client:
        assert node.module.healths[-1] == ("ERROR", "127.0.0.1:8080/tcp is taken by nginx (pid 71)")
        assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize("count", [1, 40])
def test_a_head_that_is_too_large_is_431_also_when_it_arrives_at_once(node: Node, count: int) -> None:
    fields = b"".join(b"X-%d: %s\r\n" % (number, b"a" * (40_000 // count)) for number in range(count))
    status, headers, body = raw(
        node, b"GET /api/v1/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + fields + b"\r\n"
    )
    assert (status, json.loads(body)["code"]) == (431, "too_large")
    assert headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/auth/tokens", "/crypto/lock", "/modules/apps/restart", "/images", "/apps/x/start"])
def test_a_bad_idempotency_key_is_400_on_every_write(node: Node, path: str) -> None:
    with node.unix() as client:
        answer = client.post(path, headers={"Idempotency-Key": "a b"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")


@pytest.mark.parametrize(
    "path",
    ["/auth/login", "/auth/tokens", "/crypto/setup", "/crypto/unlock", "/crypto/password", "/crypto/recovery", "/crypto/reset",
     "/apps/x/update", "/apps/x/revert", "/routes/test", "/leadership/kernel/switchover"],
)  # fmt: skip
@pytest.mark.parametrize("body", [b"[" * 3_000, b'{"a":' * 3_000, b'{"password":' + b"[" * 3_000])
def test_a_body_that_is_nested_too_deeply_is_400_and_no_bug(node: Node, path: str, body: bytes) -> None:
    with node.unix() as client:
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid"), answer.text
    assert node.module.errors == []

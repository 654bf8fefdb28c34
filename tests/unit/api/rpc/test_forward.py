"""A write on a node that does not lead: sent on, forwarded, or refused, and never done twice. Real nodes, real TLS."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from piccolod.errors import NotLeader
from piccolod.pki.identity import Role
from piccolod.protocol.apps import ChangeApp, Changed, InstallApp
from piccolod.protocol.persistence import Commit, Committed, VerifyPassword
from services.api.rpc import relay as relaying
from tests.unit.api.node import PASSWORD, Client, Node
from tests.unit.api.rpc.cluster import Cluster, answering, codes, formed, impostor

TITLE = {"title": "Home"}


@pytest.fixture
def two() -> Iterator[Cluster]:
    """n1 leads."""
    with formed("n1", "n2") as cluster:
        cluster.elect("n1")
        yield cluster


def commits(node: Node) -> list[tuple[str, str]]:
    """(author, the collections that it wrote)."""
    return [(each.author, ",".join(write.collection for write in each.writes)) for each in node.modules.asked(Commit)]


def browser(node: Node) -> Client:
    client = node.tcp()
    client.http.headers["X-CSRF-Token"] = client.post("/auth/login", json={"password": PASSWORD}).json()["csrf"]
    return client


# --- the unix socket


def test_the_unix_socket_of_a_follower_writes_on_the_leader_as_the_admin_of_its_node(two: Cluster) -> None:
    with two["n2"].unix() as client:
        answer = client.put("/settings", json=TITLE)
    assert (answer.status_code, answer.json()["title"]) == (200, "Home")
    assert answer.headers["piccolo-rev"] == str(two["n1"].modules.rev)
    assert commits(two["n1"]) == [("root@n2", "settings")] and commits(two["n2"]) == []
    action = "PUT /api/v1/settings"
    assert codes(two["n1"], action) == codes(two["n2"], action) == [("root@n2", 200, "")]
    (there,), (here,) = ([each for each in two[name].audits() if each.action == action] for name in ("n1", "n2"))
    assert (there.source, here.source) == ("n2:uid:0", "uid:0") and there.request_id == here.request_id


def test_the_leader_itself_writes_under_the_name_of_its_node(two: Cluster) -> None:
    with two["n1"].unix() as client:
        assert client.put("/settings", json=TITLE).status_code == 200
    assert commits(two["n1"]) == [("root@n1", "settings")]


def test_a_retry_is_known_as_one_wherever_the_leadership_went_meanwhile(two: Cluster) -> None:
    """Forwarded the first time, done by the node itself the second: the same author and the same key at persistence."""
    key = {"Idempotency-Key": "k1"}
    with two["n2"].unix() as client:
        client.put("/settings", json=TITLE, headers=key)
        two.elect("n2")
        client.put("/settings", json=TITLE, headers=key)
    (first,) = [idem for request, idem, _ in two["n1"].modules.calls if isinstance(request, Commit)]
    (second,) = [idem for request, idem, _ in two["n2"].modules.calls if isinstance(request, Commit)]
    assert first == second != ""
    assert commits(two["n1"]) == commits(two["n2"])


def test_the_root_of_every_node_is_one_caller_and_the_audit_tells_them_apart(two: Cluster) -> None:
    key = {"Idempotency-Key": "k1"}
    for name in ("n1", "n2"):
        with two[name].unix() as client:
            client.put("/settings", json=TITLE, headers=key)
    first, second = (idem for request, idem, _ in two["n1"].modules.calls if isinstance(request, Commit))
    assert first == second != ""
    assert commits(two["n1"]) == [("root@n1", "settings"), ("root@n2", "settings")]


def test_the_leaders_refusal_is_the_answer(two: Cluster) -> None:
    with two["n2"].unix() as client:
        answer = client.put("/secrets/Bad", json={"value": "v"})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert codes(two["n2"], "PUT /api/v1/secrets/Bad") == [("root@n2", 400, "invalid")]
        created = client.post("/auth/tokens", json={"name": "t", "scope": "read"})
        assert created.status_code == 201


def test_nothing_of_a_write_is_done_on_the_follower_first(two: Cluster) -> None:
    manifest = b"name: x\n" + b"#" * 300_000
    with two["n2"].unix() as client:
        answer = client.post("/apps", content=manifest, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 201
    assert two["n2"].modules.asked(InstallApp) == []
    (asked,) = two["n1"].modules.asked(InstallApp)
    assert asked.manifest.text.encode() == manifest and asked.author == "root@n2"


def test_a_write_that_the_last_gate_refused_is_forwarded_all_the_same(two: Cluster) -> None:
    """The follower held the term when it looked, and not any more when it wrote."""
    lost = NotLeader("the term is over")
    two["n2"].modules.fail_kinds[Commit] = lost
    two["n2"].service._core.check_leads = lambda: None  # type: ignore[method-assign]
    with two["n2"].unix() as client:
        assert client.put("/settings", json=TITLE).status_code == 200
    assert len(two["n2"].modules.asked(Commit)) == 1 and commits(two["n1"]) == [("root@n2", "settings")]


def test_what_concerns_the_node_itself_stays_there(two: Cluster) -> None:
    with two["n2"].unix() as client:
        assert client.get("/settings").status_code == 200
        assert client.post("/images/prune").status_code == 200
        assert client.post("/crypto/lock").status_code == 200
    assert codes(two["n1"], "POST /api/v1/images/prune") == codes(two["n1"], "POST /api/v1/crypto/lock") == []


def test_who_says_never_is_told_who_leads(two: Cluster) -> None:
    with two["n2"].unix() as client:
        answer = client.put("/settings", json=TITLE, headers={"Piccolo-Redirect": "never"})
    assert (answer.status_code, answer.json()["code"]) == (409, "not_leader")
    leader = answer.json()["leader"]
    assert (leader["node"], leader["address"], leader["url"]) == ("n1", "127.0.0.11", f"http://127.0.0.1:{two['n1'].port}")
    assert answer.headers["piccolo-leader"] == "n1" and answer.headers["piccolo-epoch"] == str(leader["epoch"])
    assert commits(two["n1"]) == []


def test_the_setting_says_whose_root_is_admin_of_the_cluster(two: Cluster) -> None:
    with two["n1"].unix() as admin, two["n2"].unix() as other:
        assert admin.put("/settings", json={"admin_from_nodes": ["n1"]}).status_code == 200
        answer = other.put("/settings", json=TITLE)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert "admin of n2" in answer.json()["detail"]
        two.elect("n2")  # the same where no call has to be forwarded
        answer = other.put("/settings", json=TITLE)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert other.get("/settings").status_code == 200, "reading is each root's own"
        assert other.post("/images/prune").status_code == other.post("/crypto/lock").status_code == 200, (
            "and so is what concerns the node alone"
        )
        assert admin.put("/settings", json=TITLE).status_code == 200, "forwarded to n2, by one that counts"
        admin.put("/settings", json={"admin_from_nodes": ["n1", "n2"]})
        assert other.put("/settings", json=TITLE).status_code == 200


def test_a_body_beyond_all_bounds_is_not_sent_on(two: Cluster) -> None:
    with two["n2"].unix() as client:
        answer = client.post("/apps", content=b"#" * (2 << 20), headers={"Content-Type": "application/yaml"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


# --- tokens


def test_a_token_is_sent_on_to_the_url_of_the_leader_and_holds_there(two: Cluster) -> None:
    with two["n1"].token("admin") as client:
        authorization = client.http.headers["Authorization"]
    with two["n2"].tcp(headers={"Authorization": authorization}, follow_redirects=False) as client:
        answer = client.put("/settings", json=TITLE)
        assert answer.status_code == 307
        assert answer.headers["location"] == f"http://127.0.0.1:{two['n1'].port}/api/v1/settings"
        assert answer.headers["piccolo-leader"] == "n1" and int(answer.headers["piccolo-epoch"]) > 0
        assert client.put("/settings", json=TITLE, headers={"Piccolo-Redirect": "never"}).status_code == 409
        assert commits(two["n1"])[1:] == [], "nothing but the token itself was written"
        followed = client.http.request("PUT", answer.headers["location"], json=TITLE)
        assert followed.status_code == 200 and commits(two["n1"])[-1][0].startswith("token:t-admin")


def test_where_the_leader_has_no_url_for_others_a_tokens_write_is_forwarded(two: Cluster) -> None:
    with two["n1"].token("admin") as client:
        authorization = client.http.headers["Authorization"]
    two.elect("n1", url=False)
    with two["n2"].tcp(headers={"Authorization": authorization}) as client:
        assert client.put("/settings", json=TITLE).status_code == 200
    assert commits(two["n1"])[-1][0].startswith("token:t-admin")


def test_a_scope_that_is_too_small_is_refused_before_anybody_is_asked(two: Cluster) -> None:
    with two["n1"].token("read") as client:
        authorization = client.http.headers["Authorization"]
    with two["n2"].tcp(headers={"Authorization": authorization}, follow_redirects=False) as client:
        assert client.put("/settings", json=TITLE).status_code == 403
    assert codes(two["n1"], "PUT /api/v1/settings") == []


# --- browsers


def test_a_browser_on_a_follower_logs_in_there_and_writes_on_the_leader(two: Cluster) -> None:
    with two["n1"].unix() as first:  # the key of sessions is made by the first login of all
        first.http.post("/api/v1/auth/login", json={"password": PASSWORD})
    with browser(two["n2"]) as client:
        assert two["n2"].modules.asked(VerifyPassword) and commits(two["n2"]) == []
        answer = client.put("/settings", json=TITLE)
        assert (answer.status_code, answer.json()["title"]) == (200, "Home")
    assert commits(two["n1"])[-1] == ("admin", "settings")
    assert codes(two["n1"], "PUT /api/v1/settings") == [("admin", 200, "")]


def test_the_first_login_of_all_on_a_follower_makes_the_key_of_sessions_on_the_leader(two: Cluster) -> None:
    two["n2"].modules.fail_kinds[Commit] = NotLeader("no term here")
    with browser(two["n2"]) as client:
        assert client.get("/auth/session").json()["user"] == "admin"
        client.post("/auth/logout")
        assert client.get("/auth/session").status_code == 401, "its end came back, too"
    assert [what for _, what in commits(two["n1"])] == ["users", "users"]


def test_a_foreign_page_gets_nothing_forwarded(two: Cluster) -> None:
    with browser(two["n2"]) as client:
        before = len(commits(two["n1"])) + len(commits(two["n2"]))
        assert client.put("/settings", json=TITLE, headers={"X-CSRF-Token": "x"}).status_code == 403
        assert client.put("/settings", json=TITLE, headers={"Origin": "http://evil.example"}).status_code == 403
    assert len(commits(two["n1"])) + len(commits(two["n2"])) == before


# --- no leader, or one that does not answer


def test_without_a_leader_a_write_is_503_and_says_when_to_come_back(two: Cluster) -> None:
    two.elect(None)
    for node in two.nodes.values():
        node.modules.fail_kinds[Commit] = NotLeader("this node does not lead")
    with two["n2"].unix() as client:
        answer = client.put("/settings", json=TITLE)
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "no_leader", "1")


def test_a_leader_that_leads_no_more_is_503_and_nobody_is_asked_further(two: Cluster) -> None:
    two.elect(None)
    two.believe("n2", leader="n1")
    two.believe("n1", leader="n2")
    with two["n2"].unix() as client:
        answer = client.put("/settings", json=TITLE)
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "no_leader", "1")
    assert commits(two["n1"]) == commits(two["n2"]) == []


def test_a_write_that_crosses_a_switchover_ends_well(two: Cluster) -> None:
    """It reaches the former leader, which leads no more; then this node has the leadership, and does it itself."""

    def lost(request: Commit) -> Committed:
        threading.Timer(0.1, two.elect, ["n2"]).start()
        raise NotLeader("handed over")

    two["n1"].modules.replies[Commit] = lost
    with two["n2"].unix() as client:
        answer = client.put("/settings", json=TITLE)
        assert answer.status_code == 200
        created = client.post("/apps", content=b"name: x", headers={"Content-Type": "application/yaml"})
        assert created.status_code == 201
    assert commits(two["n2"]) == [("root@n2", "settings")]
    assert codes(two["n2"], "PUT /api/v1/settings") == [("root@n2", 200, "")], "told once"


def test_a_body_is_sent_anew_when_the_leadership_moves_on(two: Cluster) -> None:
    def lost(request: InstallApp) -> Changed:
        threading.Timer(0.1, two.elect, ["n2"]).start()
        raise NotLeader("handed over")

    two["n1"].modules.replies[InstallApp] = lost
    manifest = "name: x\n" + "#" * 200_000
    with two["n2"].unix() as client:
        assert client.post("/apps", content=manifest, headers={"Content-Type": "application/yaml"}).status_code == 201
    assert [each.manifest.text for each in two["n2"].modules.asked(InstallApp)] == [manifest]


def test_a_leader_that_cannot_be_reached_is_503_for_nothing_was_done() -> None:
    with formed("n2") as cluster:
        cluster.believe("n2", leader="n1")
        with cluster["n2"].unix() as client:
            answer = client.put("/settings", json=TITLE)
        assert (answer.status_code, answer.json()["code"]) == (503, "no_leader")
        assert "n1" in answer.json()["detail"] and answer.headers["retry-after"] == "1"
        assert codes(cluster["n2"], "PUT /api/v1/settings") == [("root@n2", 503, "no_leader")]


def test_a_leader_that_took_the_write_and_was_lost_is_504_for_nobody_knows() -> None:
    with formed("n2") as cluster:
        cluster.believe("n2", leader="n1")
        with impostor(cluster, "n1", lambda tls: tls.recv(65536)), cluster["n2"].unix() as client:
            answer = client.http.put("/api/v1/settings", json=TITLE)
        assert (answer.status_code, answer.json()["code"]) == (504, "outcome_unknown")


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\xff\xfe", b"\x81\xa6status\xa1\xff"])
def test_a_leader_whose_answer_cannot_be_read_is_504_for_nobody_knows(garbage: bytes) -> None:
    with formed("n2") as cluster:
        cluster.believe("n2", leader="n1")
        with impostor(cluster, "n1", answering(garbage)), cluster["n2"].unix() as client:
            answer = client.http.put("/api/v1/settings", json=TITLE)
        assert (answer.status_code, answer.json()["code"]) == (504, "outcome_unknown")
        assert "cannot be read" in answer.json()["detail"]


def test_a_leader_that_does_not_answer_in_time_is_504(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaying, "_WITHIN_S", 0.2)
    silent = threading.Event()
    with formed("n2") as cluster:
        cluster.believe("n2", leader="n1")
        with impostor(cluster, "n1", lambda tls: silent.wait(10)), cluster["n2"].unix() as client:
            began = time.monotonic()
            answer = client.http.put("/api/v1/settings", json=TITLE)
            took_s = time.monotonic() - began
            silent.set()
        assert answer.status_code == 504 and took_s < 5


def test_another_node_at_the_leaders_address_gets_nothing() -> None:
    """Its certificate is good: it is only not the node that was meant."""
    heard: list[bytes] = []
    with formed("n2") as cluster:
        cluster.believe("n2", leader="n1")
        with impostor(cluster, "n1", lambda tls: heard.append(tls.recv(65536)), certificate_of="n2"):
            with cluster["n2"].unix() as client:
                answer = client.put("/settings", json=TITLE)
        assert answer.status_code == 503 and "n2 answers where n1 should be" in answer.json()["detail"]
        assert b"".join(heard) == b""


@pytest.mark.parametrize("other", [{"role": Role.WITNESS}, {"cluster": "another"}])
def test_who_is_no_member_of_this_cluster_is_sent_nothing(other: dict[str, Any]) -> None:
    heard: list[bytes] = []
    with formed("n2") as cluster:
        cluster.believe("n2", leader="n1")
        with impostor(cluster, "n1", lambda tls: heard.append(tls.recv(65536)), **other), cluster["n2"].unix() as client:
            answer = client.put("/settings", json=TITLE)
        assert answer.status_code == 503 and "n1 cannot be asked" in answer.json()["detail"]
        assert b"".join(heard) == b""


def test_where_members_are_is_read_from_the_file_that_consensus_keeps(two: Cluster) -> None:
    """The event says an address only; a node may have its rpc on another port."""
    file = two["n2"].module.paths.cluster / "members.json"
    file.write_text(json.dumps({"n1": {"address": "127.0.0.99", "client_url": "", "rpc": f"127.0.0.11:{two.rpc_port}"}}))
    two.believe("n2", leader="n1", address="127.0.0.98")
    with two["n2"].unix() as client:
        assert client.put("/settings", json=TITLE).status_code == 200


def test_a_change_of_an_app_is_forwarded(two: Cluster) -> None:
    with two["n2"].unix() as client:
        assert client.post("/apps/x/stop").status_code == 200
    assert two["n1"].modules.asked(ChangeApp)[0].author == "root@n2" and not two["n2"].modules.asked(ChangeApp)


def test_a_follower_is_as_ready_as_the_leader_and_says_its_role(two: Cluster) -> None:
    for name, role in (("n1", "leader"), ("n2", "follower")):
        with two[name].tcp() as client:
            ready = client.get("/health/ready")
            assert (ready.status_code, ready.json()["role"]) == (200, role)
            consensus = client.get("/health/detail").json()["components"]["consensus"]
            assert (consensus["level"], consensus["role"]) == ("OK", role)


def test_probes_of_a_load_balancer_are_answered_here(two: Cluster) -> None:
    for method in ("GET", "HEAD"):
        with two["n1"].tcp() as leader, two["n2"].tcp(follow_redirects=False) as follower:
            assert leader.request(method, "/leader/kernel").status_code == 200
            answer = follower.request(method, "/leader/kernel")
            assert (answer.status_code, answer.headers["piccolo-leader"]) == (409, "n1")
    two.elect(None)
    with two["n2"].tcp() as client:
        assert client.get("/leader/kernel").status_code == 503

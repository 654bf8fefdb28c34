"""Each command says to the API what its arguments mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.api_double import ApiDouble, Reply, serving
from tests.unit.cli.conftest import Ctl

OPEN = {"initialized": True, "locked": False, "has_recovery": False, "keyset_version": 1, "cluster_id": "c", "reason": ""}


# --- passwords


def test_a_password_from_stdin_loses_its_line_end_only(ctl: Ctl, double: ApiDouble) -> None:
    double.on("POST", "/crypto/unlock", OPEN)
    done = ctl("unlock", "--password-stdin", stdin=" spaces stay \n")
    assert double.sent[0].document == {"password": " spaces stay "}
    assert done.out == "the store is unlocked\n"


def test_a_password_from_a_file(ctl: Ctl, double: ApiDouble, folder: Path) -> None:
    (folder / "pw").write_text("from a file\nand a second line\n")
    double.on("POST", "/crypto/setup", OPEN, status=201)
    assert ctl("setup", "--password-file", str(folder / "pw")).code == 0
    assert double.sent[0].document == {"password": "from a file"}


@pytest.mark.parametrize("command", ["setup", "unlock"])
def test_without_a_terminal_a_password_is_not_guessed(ctl: Ctl, double: ApiDouble, command: str) -> None:
    done = ctl(command)
    assert done.code == 2
    assert "--password-stdin" in done.err
    assert double.sent == []


def test_an_empty_password_is_refused_here(ctl: Ctl, double: ApiDouble) -> None:
    assert ctl("unlock", "--password-stdin", stdin="\n").code == 8
    assert double.sent == []


def test_no_command_takes_a_password_as_an_argument(ctl: Ctl, double: ApiDouble) -> None:
    assert ctl("unlock", "secret").code == 2
    assert ctl("unlock", "--password", "secret").code == 2
    assert ctl("secrets", "set", "name", "value").code == 2


def test_a_new_password_takes_both_from_stdin(ctl: Ctl, double: ApiDouble) -> None:
    double.on("POST", "/crypto/password", OPEN)
    assert ctl("keys", "password", "--password-stdin", stdin="old one\nnew one\n").code == 0
    assert double.sent[0].document == {"old": "old one", "new": "new one"}


def test_recovery_words_are_the_only_thing_on_stdout(ctl: Ctl, double: ApiDouble) -> None:
    double.on("POST", "/crypto/recovery", {"words": "abandon ability able"})
    done = ctl("keys", "recovery", "new", "--password-stdin", stdin="pw\n")
    assert done.out == "abandon ability able\n"
    assert "paper" in done.err


def test_recovery_words_set_a_new_password(ctl: Ctl, double: ApiDouble) -> None:
    double.on("POST", "/crypto/reset", OPEN)
    assert ctl("keys", "recovery", "use", "--password-stdin", stdin="abandon ability\nnew one\n").code == 0
    assert double.sent[0].document == {"words": "abandon ability", "new": "new one"}


# --- redirects


def test_a_leader_hint_is_followed_with_body_and_token(ctl: Ctl, folder: Path) -> None:
    with serving(ApiDouble(), None) as leader, serving(ApiDouble(), None) as follower:
        leader.on("PUT", "/secrets/db", {"name": "db"})
        location = {"Location": f"{leader.url}/api/v1/secrets/db"}
        follower.refuse("PUT", "/secrets/db", 307, "not_leader", headers=location)
        (folder / "value").write_text("v")
        done = ctl("--url", follower.url, "--token", "pic_x", "secrets", "set", "db", "--file", str(folder / "value"))
    assert done.code == 0
    assert leader.sent[0].document == {"value": "v"}
    assert leader.sent[0].headers["authorization"] == "Bearer pic_x"
    assert leader.sent[0].headers["idempotency-key"] == follower.sent[0].headers["idempotency-key"]


def test_no_redirect_stays_here_and_is_5(ctl: Ctl) -> None:
    with serving(ApiDouble(), None) as follower:
        follower.refuse(
            "POST", "/crypto/lock", 307, "not_leader", headers={"Location": "http://127.0.0.1:1/api/v1/crypto/lock"}
        )
        done = ctl("--url", follower.url, "--no-redirect", "lock")
    assert done.code == 5
    assert follower.sent[0].headers["piccolo-redirect"] == "never"


def test_hints_in_a_circle_end(ctl: Ctl) -> None:
    with serving(ApiDouble(), None) as node:
        node.refuse("GET", "/apps", 307, "not_leader", headers={"Location": f"{node.url}/api/v1/apps"})
        done = ctl("--url", node.url, "ps")
    assert done.code == 5
    assert len(node.sent) < 6


def test_what_came_from_stdin_is_not_sent_half_to_the_leader(ctl: Ctl) -> None:
    with serving(ApiDouble(), None) as node:
        node.refuse("POST", "/images", 307, "not_leader", headers={"Location": f"{node.url}/other"})
        done = ctl("--url", node.url, "images", "load", "-", stdin=b"tar")
    assert done.code == 5
    assert "second time" in done.err


# --- the rest


def test_routes_test_takes_the_only_listener(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/apps/hello", app)
    double.on("POST", "/routes/test", {"ok": True, "reason": "", "connect_ms": 0.4})
    assert ctl("routes", "test", "hello").code == 0
    assert double.sent[-1].document == {"app": "hello", "listener": "web"}
    double.on("POST", "/routes/test", {"ok": False, "reason": "refused", "connect_ms": 0})
    done = ctl("routes", "test", "hello.web")
    assert done.code == 1
    assert "does not answer: refused" in done.out


def test_a_module_restart_waits_for_the_new_process(ctl: Ctl, double: ApiDouble) -> None:
    old = {"name": "apps", "pid": 1, "instance": "a", "state": "ready"}
    double.on("POST", "/modules/apps/restart", Reply(202))
    double.on(
        "GET", "/modules", [old], [old], [{**old, "instance": "b", "state": "starting"}], [{**old, "instance": "b", "pid": 2}]
    )
    done = ctl("modules", "restart", "apps")
    assert done.code == 0
    assert done.out == "apps is ready again as pid 2\n"


def test_an_unknown_module_is_3(ctl: Ctl, double: ApiDouble) -> None:
    double.on("GET", "/modules", [])
    assert ctl("modules", "show", "nobody").code == 3


def test_a_damaged_store_is_1_and_says_how_to_go_on(ctl: Ctl, double: ApiDouble) -> None:
    report = {"ok": False, "file": "control.db", "entries": 5, "first_rev": 1, "good_rev": 3, "head_rev": 5,
              "problem": "rev 4: digest", "set_aside": "", "lost_revs": 0}  # fmt: skip
    double.on("POST", "/store/check", report)
    done = ctl("store", "check")
    assert done.code == 1
    assert "rev 4: digest" in done.out
    assert "store repair" in done.out


def test_settings_set_changes_one_and_keeps_the_others(ctl: Ctl, double: ApiDouble) -> None:
    double.on("GET", "/settings", {"title": "home", "session_hours": 12, "generation": 4})
    double.on("PUT", "/settings", {"title": "home", "session_hours": 5, "generation": 9})
    assert ctl("settings", "set", "session_hours=5").code == 0
    assert double.sent[-1].document == {"title": "home", "session_hours": 5}


def test_one_setting_is_plain_text(ctl: Ctl, double: ApiDouble) -> None:
    double.on("GET", "/settings", {"title": "home", "session_hours": 12, "generation": 4})
    assert ctl("settings", "get", "title").out == "home\n"
    assert ctl("settings", "get", "nothing").code == 3


def test_a_token_is_the_only_thing_on_stdout(ctl: Ctl, double: ApiDouble) -> None:
    double.on(
        "POST", "/auth/tokens", {"id": "1", "name": "ci", "scopes": ["read"], "expires_ms": 0, "token": "pic_1_s"}, status=201
    )
    done = ctl("tokens", "create", "ci", "--scope", "write", "--expires", "30d")
    assert done.out == "pic_1_s\n"
    assert double.sent[0].document == {"name": "ci", "scope": "write", "expires_in_s": 30 * 86400}


def test_a_secret_that_is_no_text_goes_in_base64(ctl: Ctl, double: ApiDouble) -> None:
    double.on("PUT", "/secrets/key", {"name": "key"})
    assert ctl("secrets", "set", "key", "--file", "-", stdin=b"\xff\x00").code == 0
    assert double.sent[0].document == {"value_base64": "/wA="}


def test_why_takes_the_name_of_an_app(ctl: Ctl, double: ApiDouble) -> None:
    leadership = {"resource": "app:hello", "role": "leader", "node": "n1"}
    change = {
        "resource": "app:hello",
        "epoch": 1,
        "at_ms": 0,
        "from_node": "",
        "to_node": "n1",
        "reason": "installed",
        "phases": {},
    }
    double.on(
        "GET", "/leadership/app:hello/why", {"leadership": leadership, "explanation": "n1 is alone.", "history": [change]}
    )
    out = ctl("why", "hello").out
    assert out.startswith("n1 is alone.\n")
    assert "installed" in out


def test_votes_are_shown_where_the_nodes_have_them(ctl: Ctl, double: ApiDouble) -> None:
    member = {
        "node": "n1", "role": "member", "address": "10.0.0.1", "rpc": "10.0.0.1:7444", "api_url": "", "state": "alive",
        "voter": True, "leads_kernel": True, "epoch": 1, "rev": 3,
    }  # fmt: skip
    found = {"mode": "etcd", "node": "n1", "cluster": "c", "profile": "fast", "members": [member], "warnings": [], "out": False}
    double.on("GET", "/cluster", found)
    assert "VOTE" in ctl("cluster", "list").out and "owner" not in ctl("cluster", "list", "-o", "wide").out
    double.on("GET", "/cluster", {**found, "members": [{**member, "voter": False}], "etcd": "external"})
    assert "VOTE" not in ctl("cluster", "list").out
    assert "timing fast, etcd kept by its owner" in ctl("cluster", "list", "-o", "wide").out


def test_a_move_waits_for_the_new_term_and_says_how_long_clients_waited(ctl: Ctl, double: ApiDouble) -> None:
    def why(epoch: int, **phases: float) -> dict[str, Any]:
        return {"history": [{"epoch": epoch, "to_node": "n2" if epoch < 5 else "n3", "phases": phases}]}

    double.on("POST", "/leadership/app:hello/switchover", {"node": "n2", "epoch": 4})
    restarting = Reply(503, {"code": "unavailable", "detail": "starting"})
    double.on(
        "GET", "/leadership/app:hello/why",
        why(3, closing=9000.0, routed=1.0), restarting, why(4, closing=500.0), why(4, closing=500.0, claimed=20.0, routed=230.0),
    )  # fmt: skip
    double.on("GET", "/apps/hello", {"name": "hello", "state": "starting", "reason": "", "generation": 1})
    done = ctl("apps", "move", "hello", "--to", "n2")
    assert (done.code, done.err.splitlines()[-1]) == (0, "hello runs on n2; its clients waited 0.75 s")
    double.on("GET", "/leadership/app:hello/why", why(5, claimed=20.0, routed=230.0))
    done = ctl("apps", "move", "hello", "--to", "n2")
    assert (done.code, done.err.splitlines()[-1]) == (0, "hello runs on n3"), "another one took it over meanwhile"


def test_a_move_whose_tale_is_lost_ends_when_the_app_runs_there(ctl: Ctl, double: ApiDouble) -> None:
    double.on("POST", "/leadership/app:hello/switchover", {"node": "n2", "epoch": 4})
    double.on("GET", "/leadership/app:hello/why", {"history": [{"epoch": 4, "to_node": "n2", "phases": {"claimed": 5.0}}]})
    app = {"name": "hello", "state": "running", "reason": "", "generation": 1, "leader": {"node": "n2", "epoch": 4}}
    double.on("GET", "/apps/hello", app)
    done = ctl("apps", "move", "hello", "--to", "n2")
    assert (done.code, done.err.splitlines()[-1]) == (0, "hello runs on n2")


def drained(*left: dict[str, str]) -> dict[str, Any]:
    return {"name": "n1", "state": "alive", "drain": {"author": "admin", "since_ms": 1, "left": list(left)}}


KERNEL_LEAVES = {"resource": "kernel", "reason": ""}
BLOG_STAYS = {"resource": "app:blog", "reason": "n2: the app's data is on n1"}


def test_a_drain_waits_until_nothing_is_on_its_way(ctl: Ctl, double: ApiDouble) -> None:
    double.on("POST", "/nodes/n1/drain", Reply(204))
    restarting = Reply(503, {"code": "unavailable", "detail": "starting"})
    double.on("GET", "/nodes/n1", {**drained(), "drain": None}, drained(KERNEL_LEAVES), restarting, drained())
    done = ctl("nodes", "drain", "n1")
    assert done.code == 0
    assert "1 to go, next kernel" in done.err and "can be switched off" in done.err


def test_a_drain_says_what_stays_and_fails(ctl: Ctl, double: ApiDouble) -> None:
    double.on("POST", "/nodes/n1/drain", Reply(204))
    double.on("GET", "/nodes/n1", drained(BLOG_STAYS, KERNEL_LEAVES), drained(BLOG_STAYS))
    done = ctl("nodes", "drain", "n1")
    assert done.code == 1
    assert "app:blog stays: n2: the app's data is on n1" in done.err and "can be switched off" not in done.err


def test_a_drain_that_takes_too_long_goes_on_without_us(ctl: Ctl, double: ApiDouble) -> None:
    double.on("POST", "/nodes/n1/drain", Reply(204))
    double.on("GET", "/nodes/n1", drained(KERNEL_LEAVES))
    done = ctl("nodes", "drain", "n1", "--timeout", "0.5")
    assert done.code == 7 and "goes on without us" in done.err


def test_a_drain_that_somebody_ends_is_not_waited_for(ctl: Ctl, double: ApiDouble) -> None:
    double.on("POST", "/nodes/n1/drain", Reply(204))
    double.on("GET", "/nodes/n1", drained(KERNEL_LEAVES), {**drained(), "drain": None})
    done = ctl("nodes", "drain", "n1")
    assert done.code == 1 and "was ended before it was through" in done.err


def test_a_drained_node_is_shown_as_such(ctl: Ctl, double: ApiDouble) -> None:
    silent = {**drained(), "name": "n4", "state": "silent"}
    nodes = [
        drained(KERNEL_LEAVES),
        {**drained(BLOG_STAYS), "name": "n2"},
        {"name": "n3", "state": "alive", "drain": None},
        silent,
    ]
    double.on("GET", "/nodes", nodes)
    states = [line.split()[1] for line in ctl("nodes", "list").out.splitlines()[1:]]
    assert states == ["draining", "drained", "alive", "silent"]


def test_why_tells_of_each_node_of_a_cluster_whether_it_could_lead(ctl: Ctl, double: ApiDouble) -> None:
    candidates = [
        {"node": "n1", "eligible": True, "reason": "leads it"},
        {"node": "n2", "eligible": False, "reason": "it is locked"},
    ]
    leadership = {"resource": "kernel", "role": "leader", "node": "n1", "candidates": candidates}
    double.on("GET", "/leadership/kernel/why", {"leadership": leadership, "explanation": "n1 leads.", "history": []})
    lines = [line.split(maxsplit=2) for line in ctl("why", "kernel").out.splitlines() if line]
    assert lines == [["n1", "leads."], ["NODE", "ELIGIBLE", "REASON"], ["n1", "yes", "leads it"], ["n2", "no", "it is locked"]]


def test_a_name_cannot_leave_its_path(ctl: Ctl, double: ApiDouble) -> None:
    ctl("apps", "show", "../crypto/lock?x=1")
    assert double.sent[0].path == "/api/v1/apps/..%2Fcrypto%2Flock%3Fx%3D1"


def test_events_go_on_where_the_stream_was_cut(ctl: Ctl, double: ApiDouble) -> None:
    def event(number: int) -> dict[str, Any]:
        return {"id": number, "type": "AppStateChanged", "key": "hello", "at": 1, "node": "n1", "body": {"state": "running"}}

    def stream(*numbers: int) -> Reply:
        told = "".join(f"id: {n}\ndata: {json.dumps(event(n))}\n\n" for n in numbers)
        return Reply(raw=f"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nretry: 1\n\n: alive\n\n{told}id: 99\ndata: {{".encode())

    double.on("GET", "/events/history", [event(3)])
    double.on("GET", "/events", stream(4, 5), stream(6), Reply(500, {"code": "failed", "detail": "enough"}))
    done = ctl("events", "-f", "-o", "name")
    assert done.out.split() == ["3", "4", "5", "6"]
    assert done.code == 1
    follows = double.bodies("GET", "/events")
    assert [each.headers["last-event-id"] for each in follows] == ["3", "5", "6"]


def test_config_check_names_every_mistake(ctl: Ctl, folder: Path) -> None:
    file = folder / "piccolod.toml"
    file.write_text('[node]\nnmae = "x"\n[api]\ntls = "maybe"\n')
    done = ctl("config", "check", str(file))
    assert done.code == 8
    assert "did you mean `name`?" in done.err
    file.write_text('[node]\nname = "n1"\n')
    assert ctl("config", "check", str(file)).code == 0


def test_doctor_looks_at_this_machine(ctl: Ctl, folder: Path) -> None:
    done = ctl("doctor", "-o", "json", socket=str(folder / "none.sock"))
    found = {each["check"]: each for each in json.loads(done.out)}
    assert {"python", "podman", "gocryptfs", "fuse", "cgroups", "disk", "memory", "public ports"} <= set(found)
    assert found["piccolod"]["grade"] == "bad"
    assert "systemctl start" in found["piccolod"]["hint"]
    assert done.code == 1


def test_doctor_tells_a_locked_node_from_an_ill_one(ctl: Ctl, double: ApiDouble) -> None:
    def finding() -> dict[str, str]:
        found: list[dict[str, str]] = json.loads(ctl("doctor", "-o", "json").out)
        return next(each for each in found if each["check"] == "piccolod")

    double.on("GET", "/health/ready", {"ready": False, "component": "lock", "reason": "locked", "code": "locked"}, status=503)
    assert finding()["grade"] == "note"
    double.on(
        "GET",
        "/health/ready",
        {"ready": False, "component": "apps", "reason": "crashlooping", "code": "unavailable"},
        status=503,
    )
    assert finding()["grade"] == "warn"
    double.on("GET", "/health/ready", {"ready": True})
    assert finding()["grade"] == "ok"


RECOVERY = {"node": "n3", "done": False, "rev": 41, "at_ms": 0, "former": ["n1", "n2"], "lost": ["writes after rev 41"]}


def test_recover_without_force_only_says_what_would_be_lost(ctl: Ctl, double: ApiDouble) -> None:
    double.on("POST", "/cluster/recover", RECOVERY)
    done = ctl("cluster", "recover")
    assert done.code == 10
    assert done.out.splitlines()[0].startswith("the cluster would begin anew on n3 with rev 41")
    assert "lost: writes after rev 41" in done.out and "nothing of the cluster was changed" in done.err
    assert double.sent[0].document == {"force": False}
    assert json.loads(ctl("cluster", "recover", "-o", "json").out) == RECOVERY


def test_a_preview_of_a_recovery_whose_answer_is_lost_is_asked_for_again(ctl: Ctl, double: ApiDouble) -> None:
    double.on("POST", "/cluster/recover", Reply(raw=b""), RECOVERY)
    assert ctl("cluster", "recover").code == 10
    assert len(double.bodies("POST", "/cluster/recover")) == 2


def test_recover_with_force_waits_until_the_cluster_is_led(ctl: Ctl, double: ApiDouble) -> None:
    members = [{"node": "n3", "state": "alive", "leads_kernel": True}]
    double.on("POST", "/cluster/recover", {**RECOVERY, "done": True})
    double.on("GET", "/cluster", Reply(503, {"code": "store_unavailable", "detail": "not yet"}),
              {"mode": "etcd", "node": "n3", "members": members})  # fmt: skip
    done = ctl("cluster", "recover", "--force")
    assert done.code == 0, done.err
    assert done.out.startswith("the cluster begins anew on n3")
    assert "waiting: not yet" in done.err and "tokens create" in done.err
    assert double.sent[0].document == {"force": True}


def test_a_recovery_that_is_refused_is_told(ctl: Ctl, double: ApiDouble) -> None:
    double.refuse("POST", "/cluster/recover", 409, "conflict", detail="n2 has the log up to rev 50")
    done = ctl("cluster", "recover", "--force")
    assert done.code == 1 and "n2 has the log up to rev 50" in done.err

"""Changing apps: what is sent, what is waited for, and what is said meanwhile."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.api_double import ApiDouble, Reply
from tests.unit.cli.conftest import Ctl

MANIFEST = "name: hello\nimage: localhost/piccolo-demo:1\n"


def changed(app: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"app": {**app, "state": "pending", "reason": "not looked at yet"}, "rev": 7, "warnings": [], **more}


@pytest.fixture
def manifest(folder: Path) -> str:
    file = folder / "app.yaml"
    file.write_text(MANIFEST)
    return str(file)


def test_install_waits_until_the_app_runs_and_tells_each_state_on_stderr(
    ctl: Ctl, double: ApiDouble, app: dict[str, Any], manifest: str
) -> None:
    double.on("POST", "/apps", changed(app), status=201)
    double.on(
        "GET",
        "/apps/hello",
        {**app, "state": "pulling", "reason": "the image is being fetched"},
        {**app, "state": "starting"},
        app,
    )
    done = ctl("apps", "install", manifest)
    assert done.code == 0
    assert done.out == "hello is running at http://127.0.0.1:35000\n"
    assert done.err.splitlines() == ["hello: pulling: the image is being fetched", "hello: starting", "hello: running"]
    assert double.sent[0].body.decode() == MANIFEST
    assert double.sent[0].headers["content-type"] == "application/yaml"


def test_a_manifest_in_json_is_sent_as_json_and_from_stdin(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("POST", "/apps", changed(app), status=201)
    double.on("GET", "/apps/hello", app)
    assert ctl("apps", "install", "-", stdin='{"name": "hello"}').code == 0
    assert double.sent[0].headers["content-type"] == "application/json"


def test_quiet_says_nothing_besides(ctl: Ctl, double: ApiDouble, app: dict[str, Any], manifest: str) -> None:
    double.on("POST", "/apps", changed(app, warnings=["no memory limit here"]), status=201)
    double.on("GET", "/apps/hello", app)
    assert ctl("apps", "install", manifest, "-q").err == ""


def test_warnings_of_a_change_are_said(ctl: Ctl, double: ApiDouble, app: dict[str, Any], manifest: str) -> None:
    double.on("POST", "/apps", changed(app, warnings=["no memory limit here"]), status=201)
    double.on("GET", "/apps/hello", app)
    assert "warning: no memory limit here" in ctl("apps", "install", manifest).err


def test_no_wait_returns_at_once(ctl: Ctl, double: ApiDouble, app: dict[str, Any], manifest: str) -> None:
    double.on("POST", "/apps", changed(app), status=201)
    done = ctl("apps", "install", manifest, "--no-wait", "-o", "name")
    assert (done.code, done.out) == (0, "hello\n")
    assert len(double.sent) == 1


def test_an_app_that_fails_is_1_with_its_reason(ctl: Ctl, double: ApiDouble, app: dict[str, Any], manifest: str) -> None:
    double.on("POST", "/apps", changed(app), status=201)
    double.on("GET", "/apps/hello", {**app, "state": "starting"}, {**app, "state": "failed", "reason": "exit code 3"})
    done = ctl("apps", "install", manifest)
    assert done.code == 1
    assert "hello is failed: exit code 3" in done.out
    assert "piccoloctl logs hello" in done.err


def test_an_app_that_stays_pending_is_1_with_its_reason(
    ctl: Ctl, double: ApiDouble, app: dict[str, Any], manifest: str
) -> None:
    double.on("POST", "/apps", changed(app), status=201)
    double.on("GET", "/apps/hello", {**app, "state": "pending", "reason": "no image localhost/x:1"})
    began = time.monotonic()
    done = ctl("apps", "install", manifest)
    assert done.code == 1
    assert "no image localhost/x:1" in done.out
    assert 1.5 < time.monotonic() - began < 10


def test_an_app_that_never_rests_is_7_and_goes_on_without_us(
    ctl: Ctl, double: ApiDouble, app: dict[str, Any], manifest: str
) -> None:
    double.on("POST", "/apps", changed(app), status=201)
    double.on("GET", "/apps/hello", {**app, "state": "starting", "reason": "waits for its first answer"})
    done = ctl("apps", "install", manifest, "--timeout", "500ms")
    assert done.code == 7
    assert "hello is still starting after" in done.err
    assert "waits for its first answer" in done.err


def test_a_restart_of_the_api_does_not_end_the_wait(ctl: Ctl, double: ApiDouble, app: dict[str, Any], manifest: str) -> None:
    double.on("POST", "/apps", changed(app), status=201)
    double.on("GET", "/apps/hello", Reply(raw=b""), Reply(raw=b""), Reply(503, {"code": "unavailable", "detail": "x"}), app)
    assert ctl("apps", "install", manifest).code == 0


def test_what_ran_before_a_restart_is_not_taken_for_its_result(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    """The old `running` is still shown at the first looks."""
    new = {**app, "generation": 2}
    double.on("POST", "/apps/hello/restart", {"app": new, "rev": 7, "warnings": []})
    double.on("GET", "/apps/hello", app, new, {**new, "state": "starting"}, {**new, "state": "failed", "reason": "exit 1"})
    done = ctl("apps", "restart", "hello")
    assert done.code == 1
    assert "failed" in done.out


def test_stop_waits_until_it_is_stopped(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    gone = {**app, "generation": 2, "desired": "stopped"}
    double.on("POST", "/apps/hello/stop", changed(gone))
    double.on("GET", "/apps/hello", gone, {**gone, "state": "stopping"}, {**gone, "state": "stopped"})
    done = ctl("apps", "stop", "hello")
    assert (done.code, done.out) == (0, "hello is stopped\n")


def test_an_update_that_was_rolled_back_is_1(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    """While the trial lasts, the old one runs: that is no result."""
    double.on("POST", "/apps/hello/update", changed({**app, "generation": 2}))
    trial, back = {**app, "generation": 2, "reason": "fetches"}, {**app, "generation": 3}
    double.on("GET", "/apps/hello", app, *[trial] * 8, {**trial, "state": "starting"}, back)
    done = ctl("apps", "update", "hello", "--image", "localhost/piccolo-demo:2")
    assert done.code == 1
    assert "went back" in done.err
    sent = double.bodies("POST", "/apps/hello/update")[0].document
    assert sent == {"image": "localhost/piccolo-demo:2", "without_snapshot": False}


def test_an_update_that_won_is_0(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("POST", "/apps/hello/update", changed({**app, "generation": 2}))
    double.on(
        "GET",
        "/apps/hello",
        app,
        {**app, "generation": 2, "state": "starting"},
        {**app, "generation": 3, "image_id": "sha256:bbbb"},
    )
    assert ctl("apps", "update", "hello").code == 0


def test_apply_puts_under_the_name_that_the_api_reads(ctl: Ctl, double: ApiDouble, app: dict[str, Any], manifest: str) -> None:
    double.on("POST", "/apps/validate", {"name": "hello", "warnings": []})
    double.on("PUT", "/apps/hello", changed(app))
    double.on("GET", "/apps/hello", app)
    assert ctl("apps", "apply", manifest).code == 0
    assert double.bodies("PUT", "/apps/hello")[0].body.decode() == MANIFEST


@pytest.mark.parametrize(("action", "code"), [("none", 0), ("install", 10), ("change", 10)])
def test_plan_is_10_when_it_would_change_something(ctl: Ctl, double: ApiDouble, manifest: str, action: str, code: int) -> None:
    double.on("POST", "/apps/validate", {"name": "hello", "warnings": []})
    plan = {"name": "hello", "action": action, "changes": ["image: a -> b"], "restarts": True, "warnings": []}
    double.on("POST", "/apps/hello/plan", plan)
    done = ctl("apps", "plan", manifest)
    assert done.code == code
    assert ("image: a -> b" in done.out) is (action != "none")


def test_mistakes_of_a_manifest_are_shown_as_file_line_column(ctl: Ctl, double: ApiDouble, manifest: str) -> None:
    errors = [
        {"path": "listeners[0].guest_port", "line": 4, "column": 12, "message": "must be 1 to 65535"},
        {"path": "name", "line": 0, "column": 0, "message": "is missing"},
    ]
    double.refuse("POST", "/apps/validate", 400, "invalid", detail="the manifest has 2 mistakes", errors=errors)
    done = ctl("apps", "validate", manifest)
    assert done.code == 8
    assert f"  {manifest}:4:12: listeners[0].guest_port: must be 1 to 65535" in done.err.splitlines()
    assert f"  {manifest}: name: is missing" in done.err.splitlines()


def test_a_manifest_that_cannot_be_read_is_8(ctl: Ctl, folder: Path) -> None:
    done = ctl("apps", "install", str(folder / "none.yaml"))
    assert done.code == 8
    assert "none.yaml" in done.err


def test_consent_to_privileged_is_said_explicitly(ctl: Ctl, double: ApiDouble, app: dict[str, Any], manifest: str) -> None:
    double.on("POST", "/apps/validate", {"name": "hello", "warnings": []})
    ctl("apps", "validate", manifest)
    ctl("apps", "validate", manifest, "--allow-privileged")
    assert [each.query for each in double.sent] == [{}, {"consent": "true"}]


def test_uninstall_asks_first_and_refuses_where_nobody_can_answer(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/apps/hello", app)
    done = ctl("apps", "uninstall", "hello")
    assert done.code == 2
    assert "-y" in done.err
    assert {each.method for each in double.sent} == {"GET"}


def test_uninstall_waits_until_the_app_is_gone(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("DELETE", "/apps/hello", Reply(204))
    volumes = [{"name": "data", "kind": "persistent"}, {"name": "cache", "kind": "temporary"}]
    double.on(
        "GET",
        "/apps/hello",
        {**app, "volumes": volumes},
        {**app, "state": "stopping"},
        Reply(404, {"code": "not_found", "detail": "no app"}),
    )
    done = ctl("-y", "apps", "uninstall", "hello", "--purge")
    assert done.code == 0
    assert double.bodies("DELETE", "/apps/hello")[0].query == {"purge": "true"}
    assert "hello is gone\n" in done.err


def test_uninstall_says_which_data_it_kept(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("DELETE", "/apps/hello", Reply(204))
    volumes = [{"name": "data", "kind": "persistent"}, {"name": "cache", "kind": "temporary"}]
    double.on("GET", "/apps/hello", {**app, "volumes": volumes}, Reply(404, {"code": "not_found", "detail": "no app"}))
    assert "its data is kept: data\n" in ctl("apps", "uninstall", "hello", "-y").err


def test_the_schema_is_json_whatever_the_form(ctl: Ctl, double: ApiDouble) -> None:
    double.on("GET", "/app-schema", {"type": "object"})
    assert json.loads(ctl("apps", "schema").out) == {"type": "object"}


def test_logs_are_data_and_follow_asks_from_the_cursor(ctl: Ctl, double: ApiDouble) -> None:
    def line(text: str) -> dict[str, Any]:
        return {"at_ms": 1, "stream": "stderr", "line": text}

    double.on("GET", "/apps/hello/logs", {"lines": [line("one")], "cursor": "1-1"}, Reply(raw=b""),
              {"lines": [line("two")], "cursor": "2-1"}, {"lines": [], "cursor": "2-1"})  # fmt: skip
    done = ctl("logs", "hello", "-f", "-n", "5", "--timeout", "2s")
    assert done.out == "one\ntwo\n"
    assert double.sent[0].query == {"tail": "5"}
    assert double.sent[-1].query["cursor"] == "2-1"


def test_logs_since_a_while(ctl: Ctl, double: ApiDouble) -> None:
    double.on("GET", "/apps/hello/logs", {"lines": [], "cursor": ""})
    assert ctl("logs", "hello", "--since", "10m").code == 0
    ago = time.time() * 1000 - int(double.sent[0].query["since"])
    assert 595_000 < ago < 660_000
    assert ctl("logs", "hello", "--since", "yesterday").code == 2


def test_ctrl_c_says_that_the_app_goes_on_without_us(ctl: Ctl, double: ApiDouble, app: dict[str, Any], manifest: str) -> None:
    def interrupt(_: object) -> Reply:
        os.kill(os.getpid(), signal.SIGINT)
        return Reply(200, {**app, "state": "starting"})

    double.on("POST", "/apps", changed(app), status=201)
    double.on("GET", "/apps/hello", {**app, "state": "starting"}, interrupt)
    done = ctl("apps", "install", manifest)
    assert done.code == 130
    assert "apps show hello" in done.err


@pytest.mark.parametrize("action", ["update", "revert"])
def test_consent_goes_with_an_update_and_a_revert(ctl: Ctl, double: ApiDouble, app: dict[str, Any], action: str) -> None:
    double.on("GET", "/apps/hello", app)
    double.on("POST", f"/apps/hello/{action}", changed(app))
    ctl("apps", action, "hello", "--no-wait")
    ctl("apps", action, "hello", "--no-wait", "--allow-privileged")
    assert [each.query for each in double.bodies("POST", f"/apps/hello/{action}")] == [{}, {"consent": "true"}]


@pytest.mark.parametrize("state", ["running", "degraded"])
def test_an_app_whose_port_is_not_bound_is_1_and_names_it_and_no_address(
    ctl: Ctl, double: ApiDouble, app: dict[str, Any], manifest: str, state: str
) -> None:
    double.on("POST", "/apps", changed(app), status=201)
    double.on("GET", "/apps/hello", {**app, "state": state, "listeners": [{**app["listeners"][0], "bound": False}]})
    done = ctl("apps", "install", manifest)
    assert done.code == 1
    assert ":35000" not in done.out, "another program answers there"
    assert "the listener web on port 35000 is not bound" in done.err


@pytest.mark.parametrize(
    ("args", "path"),
    [
        (("tokens", "create", "ci"), "/auth/tokens"),
        (("unlock", "--password-stdin"), "/crypto/unlock"),
        (("lock",), "/crypto/lock"),
        (("cluster", "recover", "--force"), "/cluster/recover"),
        (("keys", "recovery", "new", "--password-stdin"), "/crypto/recovery"),
        (("api", "POST", "/modules/api/restart"), "/modules/api/restart"),
        (("api", "post", "/auth/tokens", "-d", "{}"), "/auth/tokens"),
    ],
)
def test_what_keeps_no_key_is_not_repeated_by_itself(ctl: Ctl, double: ApiDouble, args: tuple[str, ...], path: str) -> None:
    double.on("POST", path, Reply(raw=b""))
    assert ctl(*args, stdin="secret\n").code != 0
    assert len(double.bodies("POST", path)) == 1


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_bare_request_that_may_come_twice_is_sent_once_more(ctl: Ctl, double: ApiDouble, method: str) -> None:
    double.on(method, "/settings", Reply(raw=b""), {"title": "home"})
    done = ctl("api", method.lower(), "/settings")
    assert (done.code, done.out) == (0, '{"title": "home"}\n')
    assert len({each.headers.get("idempotency-key") for each in double.bodies(method, "/settings")}) == 1
    assert len(double.bodies(method, "/settings")) == 2


def test_a_lock_names_what_still_runs(ctl: Ctl, double: ApiDouble) -> None:
    double.on("POST", "/crypto/lock", {"initialized": True, "locked": True, "still_running": ["hello"], "warning": "w1"})
    done = ctl("lock")
    assert done.code == 1
    assert "still running: hello" in done.err
    assert "warning: w1" in done.err

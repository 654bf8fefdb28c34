"""The main job on one machine: a password, an app from a manifest, its public port, and everything a person does with it."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from piccolod.kernel import MODULES
from tests.node import PASSWORD, ROOT, Failed, Node, until
from tests.unit.apps.test_manifest import bombs


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        node.start()
        yield node


def test_a_new_node_is_up_and_says_that_it_needs_a_password(node: Node) -> None:
    assert node.api("GET", "/health/live").status == 200
    ready = node.api("GET", "/health/ready")
    assert ready.status == 503
    assert ready.json["ready"] is False
    assert node.get("/crypto/status")["initialized"] is False


def test_nothing_can_be_managed_before_the_password(node: Node) -> None:
    reply = node.api("POST", "/apps", node.demo_manifest(), kind="application/yaml")
    assert reply.status == 423
    assert reply.json["code"] == "locked"
    assert node.ctl("apps", "list").returncode == 4


def test_the_first_password_unlocks(node: Node) -> None:
    done = node.ctl("setup", "--password-stdin", text=f"{PASSWORD}\n")
    assert done.returncode == 0, done.stderr
    assert node.get("/crypto/status")["locked"] is False
    until(lambda: node.api("GET", "/health/ready").status == 200, "ready")


def test_the_code_that_only_a_password_needs_is_let_go_of(node: Node) -> None:
    """Argon2's and that of the first setup's certificate: 7 MiB of pages. The store works on without."""
    pid = node.pid("persistence")
    until(lambda: 0 < resident_kib(pid, "_rust.abi3.so") < 3 * 1024, "it is let go of")
    assert node.ctl("secrets", "set", "one", "--file", "-", text="value").returncode == 0
    assert node.ctl("secrets", "remove", "one", "-y").returncode == 0


def test_the_demo_app_serves_on_its_public_port(node: Node) -> None:
    node.load_demo_image()
    done = node.ctl("apps", "install", str(ROOT / "deploy/demo/app.yaml"))
    assert done.returncode == 0, done.stderr
    app = node.wait_app("hello")
    assert app["leader"]["node"] == "n1"
    assert node.fetch(node.public_port("hello")).status == 200


def test_a_disabled_app_serves_on_also_under_another_piccolod_of_this_boot(node: Node) -> None:
    container = node.app("hello")["nodes"]["n1"]["container_id"]
    assert node.ctl("apps", "disable", "hello").returncode == 0
    node.stop()
    node.start()
    node.unlock()
    app = node.wait_app("hello")
    assert (app["enabled"], app["nodes"]["n1"]["container_id"]) == (False, container)
    assert node.fetch(node.public_port("hello")).status == 200
    assert node.ctl("apps", "enable", "hello").returncode == 0


def test_a_second_install_is_refused_and_changes_nothing(node: Node) -> None:
    rev = node.get("/store/revision")["rev"]
    assert node.ctl("apps", "install", str(ROOT / "deploy/demo/app.yaml")).returncode == 1
    assert node.get("/store/revision")["rev"] == rev


def test_an_app_that_does_not_exist_is_not_found(node: Node) -> None:
    assert node.api("GET", "/apps/nobody").status == 404
    assert node.ctl("apps", "show", "nobody").returncode == 3


def test_a_bad_manifest_names_every_mistake_with_line_and_column(node: Node, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: Bad\nimagee: x\nlisteners:\n  - {name: web, guest_port: 99999}\n")
    done = node.ctl("apps", "validate", str(bad))
    assert done.returncode == 8
    for expected in ("bad.yaml:1:", "bad.yaml:2:", "bad.yaml:4:", "image"):
        assert expected in done.stderr, done.stderr


def test_stop_and_start_keep_the_public_port(node: Node) -> None:
    port = node.public_port("hello")
    assert node.ctl("apps", "stop", "hello").returncode == 0
    node.wait_app("hello", "stopped")
    with pytest.raises(OSError, match=r"refused|reset"):
        node.fetch(port)
    assert node.ctl("apps", "start", "hello").returncode == 0
    node.wait_app("hello")
    assert node.fetch(port).status == 200


def test_logs_of_an_app_are_shown(node: Node) -> None:
    done = node.ctl("apps", "logs", "hello")
    assert done.returncode == 0, done.stderr


def test_an_app_keeps_its_data_over_restarts_and_no_plain_text_rests_on_the_disk(node: Node) -> None:
    secret = "plaintext-that-must-not-rest"
    manifest = node.demo_manifest(
        "keeper",
        "storage: {persistent: {data: {container: /data, size_limit: 64MiB}}}\n"
        f'command: [/bin/sh, -c, "echo {secret}-$(date +%s%N) >> /data/log; httpd -f -p 80 -h /data"]\n',
    )
    node.install(manifest)
    port = node.public_port("keeper")
    until(lambda: secret.encode() in node.fetch(port, "/log").body, "the file that the app wrote")
    assert node.ctl("apps", "restart", "keeper").returncode == 0
    until(lambda: node.fetch(port, "/log").body.count(secret.encode()) >= 2, "both lines after the restart", 15)
    ciphertext = [path for path in (node.state / "volumes").rglob("*") if path.is_file()]
    assert ciphertext
    needle = b"plaintext-that-must-not-rest-1"
    for path in (*ciphertext, *(node.state / "store").rglob("*"), *(node.state / "log").rglob("*")):
        if path.is_file():
            assert needle not in path.read_bytes(), path
    shown = json.loads(node.ctl("-o", "json", "volumes", "show", "keeper.data").stdout)
    assert (shown["app"], shown["name"], shown["attached"]) == ("keeper", "data", "rw")
    assert shown["path"] == node.get("/volumes/keeper.data")["path"]
    assert node.ctl("volumes", "show", "keeper.nothing").returncode == 3
    assert node.api("DELETE", "/apps/keeper?purge=true", timeout_s=90).status in (200, 204)
    until(lambda: node.api("GET", "/apps/keeper").status == 404, "the app gone")


def test_lock_refuses_management_and_the_app_serves_on_after_unlock(node: Node) -> None:
    assert node.ctl("lock").returncode == 0
    before = node.get("/store/revision")["rev"]
    sealed = (node.state / "store/control.db").read_bytes()
    for method, path, body, kind in (
        ("POST", "/apps", node.demo_manifest("late"), "application/yaml"),
        ("PUT", "/apps/hello", node.demo_manifest(extra="title: Late\n"), "application/yaml"),
        ("POST", "/apps/hello/stop", {}, "application/json"),
        ("DELETE", "/apps/hello", None, ""),
        ("PUT", "/settings", {"title": "late"}, "application/json"),
        ("PUT", "/secrets/late", {"value": "late"}, "application/json"),
        ("POST", "/auth/tokens", {"name": "late", "scope": "read"}, "application/json"),
    ):
        refused = node.api(method, path, body, kind=kind)
        assert (refused.status, refused.json["code"]) == (423, "locked"), (method, path, refused)
        assert node.get("/store/revision")["rev"] == before, (method, path)
        assert (node.state / "store/control.db").read_bytes() == sealed, (method, path)
    assert node.ctl("apps", "list").returncode == 4
    assert node.api("GET", "/apps").status == 423
    wrong = node.ctl("unlock", "--password-stdin", text="not the password\n")
    assert wrong.returncode == 9, wrong.stderr
    right = node.ctl("unlock", "--password-stdin", text=f"{PASSWORD}\n")
    assert right.returncode == 0, right.stderr
    node.wait_app("hello")
    assert node.fetch(node.public_port("hello")).status == 200


def test_why_names_the_leader_and_its_reason(node: Node) -> None:
    done = node.ctl("why", "app:hello")
    assert done.returncode == 0, done.stderr
    assert "n1" in done.stdout
    leaders = json.loads(node.ctl("-o", "json", "leaders", "list").stdout)
    assert {leader["resource"]: leader["role"] for leader in leaders}["kernel"] == "leader"


def test_metrics_count_the_modules(node: Node) -> None:
    reply = node.api("GET", "/metrics")
    assert reply.status == 200
    assert b"piccolo" in reply.body


def test_no_secret_shows_in_processes_logs_or_state(node: Node) -> None:
    processes = node.processes()
    assert {node.pid(spec.name) for spec in MODULES} < {one.pid for one in processes}
    for one in processes:
        for name in ("cmdline", "environ"):
            try:
                assert PASSWORD.encode() not in Path(f"/proc/{one.pid}/{name}").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
    for folder in (node.state / "log", node.state / "store", node.state / "journal", node.state / "consensus"):
        for path in folder.rglob("*"):
            if path.is_file():
                assert PASSWORD.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_sent_to_validate_is_refused_and_the_module_stays_small(node: Node, name: str) -> None:
    before_kib, pid = peak_kib(node.pid("apps")), node.pid("apps")
    began = time.monotonic()
    reply = node.api("POST", "/apps/validate", bombs()[name], kind="application/yaml")
    took_s = time.monotonic() - began
    assert reply.status in (200, 400, 413), reply
    if reply.status == 200:
        assert not reply.json["valid"]
    assert took_s < 3.0, "the figure is 1 s; here other tests' load may be beside it"
    assert node.pid("apps") == pid
    assert peak_kib(pid) - before_kib < 50 * 1024


def test_uninstall_closes_the_port_and_removes_the_container(node: Node) -> None:
    port = node.public_port("hello")
    assert node.ctl("apps", "uninstall", "hello", "-y").returncode == 0
    until(lambda: "piccolo-hello" not in node.podman("ps", "--all", "--format", "{{.Names}}"), "no container")
    with pytest.raises(OSError, match=r"refused|reset"):
        node.fetch(port)


def test_ctrl_c_stops_everything(node: Node) -> None:
    node.install(node.demo_manifest("last"))
    before = node.processes()
    assert {node.pid(spec.name) for spec in MODULES} < {one.pid for one in before}
    assert node.stop(signal.SIGINT) < 8.0
    with contextlib.suppress(Failed):
        until(lambda: not any(lives(one) for one in before), "no process left", 5)
    assert [one for one in before if lives(one)] == []
    assert node.survivors() == []
    assert node.podman("ps", "--format", "{{.Names}}").strip() == ""


def peak_kib(pid: int) -> int:
    """The most memory that the process ever had, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def resident_kib(pid: int, library: str) -> int:
    """How much of a library's file is mapped in the process, in KiB."""
    total, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if not line.partition(" ")[0].endswith(":"):
            counts = line.endswith(f"/{library}")
        elif counts and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def lives(one: psutil.Process) -> bool:
    """Whether that very process, not another with its number, is more than a zombie that waits for this host's init."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return one.is_running() and one.status() != psutil.STATUS_ZOMBIE
    return False

"""What a person meets on a bad day, on a node of its own: a damaged store, a taken port, podman gone, a bomb for a manifest."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node import Node, until
from tests.poller import Poller

_PAGE = 4096  # of SQLite


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as node:
        node.start()
        node.unlock()
        yield node


def _damage(node: Node, cut: bool) -> None:
    """One flipped bit in the header of an entry (who wrote it), or the page of the newest entries gone."""
    file = node.state / "store/control.db"
    content = bytearray(file.read_bytes())
    if cut:
        content = content[: content.rindex(b"root") // _PAGE * _PAGE]
    else:
        content[content.rindex(b"root")] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("cut", [False, True], ids=["flipped", "truncated"])
def test_a_damaged_store_is_named_refused_and_repaired_with_nothing_deleted(node: Node, cut: bool) -> None:
    written = {}  # rev -> the title as of then
    for number in range(20):
        reply = node.api("PUT", "/settings", {"title": f"night {number}"})
        assert reply.status == 200, reply
        written[int(reply.headers["piccolo-rev"])] = f"night {number}"
    node.stop(signal.SIGTERM)
    _damage(node, cut)
    damaged = (node.state / "store/control.db").read_bytes()
    node.start(wait=False)
    until(lambda: (node.run / "api.sock").exists() and node.api("GET", "/health/live").status == 200, "alive", 15)
    ready = until(
        lambda: "control.db" in (reply := node.api("GET", "/health/ready")).body.decode() and reply, "the file named", 10
    )
    assert ready.status == 503
    check = node.ctl("store", "check")
    assert check.returncode != 0
    assert "control.db" in check.stdout + check.stderr
    repaired = node.ctl("-o", "json", "store", "repair", "-y")
    assert repaired.returncode == 0, repaired
    report = json.loads(repaired.stdout)
    assert Path(report["set_aside"]).read_bytes() == damaged, "the damaged file is kept"
    node.unlock()
    until(lambda: node.api("GET", "/health/ready").status == 200, "ready after the repair", 15)
    kept = [rev for rev in written if rev <= report["good_rev"]]
    assert 0 < len(kept) < len(written), report
    promised = int(re.search(r"good up to rev (\d+)", check.stdout + check.stderr)[1])  # type: ignore[index]
    assert promised <= report["good_rev"], "what was promised before the repair"
    settings = node.get("/settings")
    assert (settings["title"], settings["generation"]) == (written[kept[-1]], kept[-1]), "every entry up to the damage is kept"
    assert node.ctl("settings", "set", "title=morning").returncode == 0


def test_a_port_that_another_program_holds_is_named_and_taken_when_it_is_free(node: Node) -> None:
    node.load_demo_image()
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        manifest = node.demo_manifest().replace("public_port: auto", f"public_port: {port}")
        done = node.ctl("apps", "install", "-", text=manifest)
        assert done.returncode == 1, done
        named = f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})"
        assert named in done.stdout + done.stderr, "whoever installs is told at once"
        until(lambda: str(port) in _reasons(node) and named in _reasons(node), "the holder named", 15)
        assert named in node.app("hello")["reason"]
        for told in (done.stdout + done.stderr, node.ctl("apps", "list").stdout, node.ctl("apps", "show", "hello").stdout):
            assert f"127.0.0.1:{port}" not in told, "an address that another program answers"
    until(lambda: _serves(node, port), "served once the port is free", 15)


class Absence:
    """podman as if it were not installed, for one node alone: something that cannot be run lies over the program."""

    def __init__(self, node: Node) -> None:
        self._node, self._program = node, shutil.which("podman") or "/usr/bin/podman"
        hide = f'{self._hide} && exec "$@"'
        node.within = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hide, "sh"]

    @property
    def _hide(self) -> str:
        return f"mount --bind /dev/null {self._program}"

    def begin(self) -> None:
        self._there(self._hide)

    def end(self) -> None:
        self._there(f"umount {self._program}")

    def _there(self, command: str) -> None:
        subprocess.run([*self._node.beside(), "sh", "-c", command], check=True, timeout=10)


def _is_named(node: Node, app: str) -> bool:
    return "podman" in str(node.app(app)["reason"])


def test_a_node_without_podman_says_so_serves_the_rest_and_recovers_when_it_is_installed() -> None:
    with Node() as node:
        absence = Absence(node)
        node.start(wait=False)
        until(lambda: node.modules().get("podman", {}).get("state") == "absent", "podman missed", 15)
        assert node.modules()["podman"]["reason"] == "podman is not installed"
        until(lambda: all(row["state"] == "ready" for name, row in node.modules().items() if name != "podman"), "the rest", 15)
        node.unlock()
        node.install(node.demo_manifest(), running=False)
        until(lambda: _is_named(node, "hello"), "the app says what it lacks", 15)
        assert node.app("hello")["state"] != "running"
        assert node.ctl("settings", "set", "title=without").returncode == 0
        assert node.ctl("apps", "list").returncode == 0
        assert "podman" in node.ctl("health").stdout

        absence.end()
        until(node.all_ready, "podman found", 30)
        node.load_demo_image()
        container = node.wait_app("hello", within_s=30)["nodes"]["n1"]["container_id"]
        port = node.public_port("hello")
        assert node.fetch(port).status == 200

        with Poller(port) as client:
            absence.begin()
            node.signal("podman", signal.SIGKILL)
            until(lambda: node.modules()["podman"]["state"] == "absent", "podman missed again", 15)
            node.install(node.demo_manifest("second"), running=False)
            until(lambda: _is_named(node, "second"), "the new app says what it lacks", 15)
            absence.end()
            until(node.all_ready, "podman found again", 30)
            node.wait_app("second", within_s=30)
        assert client.failures() == []
        assert node.wait_app("hello")["nodes"]["n1"]["container_id"] == container
        assert node.fetch(node.public_port("second")).status == 200


def test_while_podman_dies_again_and_again_apps_serve_and_all_recovers(node: Node) -> None:
    node.load_demo_image()
    node.install(node.demo_manifest())
    port = node.public_port("hello")
    end_at = time.monotonic() + 6
    while time.monotonic() < end_at:
        pid = node.modules()["podman"]["pid"]
        if pid:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        assert node.fetch(port).status == 200
        time.sleep(0.05)
    assert node.api("GET", "/status").status == 200
    until(lambda: node.modules()["podman"]["state"] == "ready", "podman's service again", 60)
    node.install(node.demo_manifest("second"))
    assert node.fetch(node.public_port("second")).status == 200


def test_a_bomb_for_a_manifest_is_refused_in_a_second_and_fifty_mebibytes(node: Node) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, 10)]
    before = _peak_kib(node.pid("apps"))
    began = time.monotonic()
    reply = node.api("POST", "/apps/validate", "\n".join(lines), kind="application/yaml")
    assert time.monotonic() - began < 1.0
    assert reply.status == 400
    assert _peak_kib(node.pid("apps")) - before < 50 * 1024


def test_garbage_on_the_public_api_is_a_problem_and_never_a_500(node: Node) -> None:
    for method, path, body, kind in (
        ("POST", "/apps", b"\xff\xfe\x00", "application/yaml"),
        ("POST", "/apps", b"[" * 5000, "application/json"),
        ("POST", "/apps", b"name: x", "text/plain"),
        ("PUT", "/apps/../../etc", b"{}", "application/json"),
        ("POST", "/crypto/unlock", b"[" * 5000, "application/json"),
        ("PATCH", "/apps", b"{}", "application/json"),
        ("GET", "/apps/%00", None, ""),
        ("POST", "/apps", b"x" * (2 << 20), "application/yaml"),
    ):
        reply = node.api(method, path, body, kind=kind)
        assert 400 <= reply.status < 500, (method, path, reply)
        assert reply.json["code"], reply


def _reasons(node: Node) -> str:
    return " ".join(route["reason"] for route in node.get("/routes"))


def _serves(node: Node, port: int) -> bool:
    try:
        return node.fetch(port).status == 200
    except OSError:
        return False


def _peak_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise AssertionError("no VmHWM")

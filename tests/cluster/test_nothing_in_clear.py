"""No secret, key, manifest content or password in clear: not on the disk, not in logs, processes or core dumps.

Each thing that must stay hidden carries a mark of its own, and goes through everything that a node does with it.
"""

from __future__ import annotations

import base64
import contextlib
import os
import resource
import secrets
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod.kernel import MODULES
from tests.node import PASSWORD, ROOT, Failed, Node, on_the_disk, until

WHAT = (
    "environment", "command", "argument", "config", "extension", "probe", "broken", "containerfile", "path",
    "secret-file", "secret-env", "said", "volume", "wrong-password", "password", "next",
)  # fmt: skip
MARKS = {name: f"{name}-{secrets.token_hex(6)}" for name in WHAT}
_FEWEST = 12  # processes of a node


def _manifest(node: Node, command: str) -> str:
    return node.demo_manifest(
        "marked",
        f'command: [/bin/sh, -c, "{command}", "{MARKS["argument"]}"]\n'
        f'environment: {{TOLD: "{MARKS["environment"]}"}}\n'
        f'app_config: {{deep: [{{told: "{MARKS["config"]}"}}]}}\n'
        f'x-told: "{MARKS["extension"]}"\n'
        "secrets: [{name: by-file, file: /run/secrets/by-file}, {name: by-env, env: BY_ENV}]\n"
        "stop: {grace: 1s}\n"
        "storage: {persistent: {data: {container: /data, size_limit: 64MiB}}}\n"
        f'healthcheck: {{exec: {{command: [/bin/sh, -c, "true {MARKS["probe"]}"]}}, interval: 1s}}\n',
    )


class Watcher:
    """Looks at every process of the host while it lives: many end before anybody could ask."""

    def __init__(self) -> None:
        self.found: set[tuple[str, str]] = set()
        self.seen: set[int] = set()
        self._here = os.readlink("/proc/self/ns/pid")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.01):
            for entry in os.listdir("/proc"):
                if entry.isdigit() and int(entry) != os.getpid():
                    self.look(int(entry))

    def look(self, pid: int) -> None:
        """A process of an app, which naturally has its command and environment, is in another pid namespace."""
        try:
            content = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            if os.readlink(f"/proc/{pid}/ns/pid") != self._here:
                return
        except OSError:
            return
        self.seen.add(pid)
        for name in _marks_in(content):
            self.found.add((name, content.partition(b"\0")[0].decode(errors="replace")))


def _marks_in(content: bytes) -> list[str]:
    forms = {name: (mark.encode(), base64.b64encode(mark.encode()).rstrip(b"=")[:-1]) for name, mark in MARKS.items()}
    return [name for name, alike in forms.items() if any(form in content for form in alike)]


def _on_the_disk(node: Node) -> list[tuple[str, str]]:
    return [(name, str(file)) for file, content in on_the_disk(node.folder) for name in _marks_in(content)]


def _processes(node: Node) -> dict[str, int]:
    """Everything of the node but the apps themselves: name -> pid."""
    tree = node.supervisor("tree")
    found = {module["name"]: int(module["pid"]) for module in tree["modules"]}
    found |= {"supervisor": tree["pid"], "zygote": tree["zygote"]["pid"], "log writer": tree["log_writer"]["pid"]}
    known = set(found.values())
    for pid in node.survivors():
        with contextlib.suppress(OSError):  # it may have ended
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if pid not in known and name in ("conmon", "gocryptfs"):
                found[f"{name} {pid}"] = pid
    return found


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """Run as `make run` does it: its run folder is on the same disk. Whoever starts it would let it dump core."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        with Node() as node, Watcher() as watcher:
            node.watcher = watcher  # type: ignore[attr-defined]
            node.start()
            node.unlock()
            node.load_demo_image()
            yield node
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def test_what_a_node_is_told_reaches_no_disk_and_no_process(node: Node) -> None:
    for name in ("file", "env"):
        done = node.ctl("secrets", "set", f"by-{name}", "--file", "-", text=MARKS[f"secret-{name}"])
        assert done.returncode == 0, done
    say = f"echo {MARKS['said']} {MARKS['command']} $TOLD $BY_ENV; cat /run/secrets/by-file /piccolo/config/app.yaml"
    node.install(_manifest(node, f"{say}; echo {MARKS['volume']} > /data/kept; exec httpd -f -p 80 -h /data"))
    logs = node.ctl("apps", "logs", "marked").stdout
    for name in ("said", "environment", "secret-env", "secret-file", "config"):
        assert MARKS[name] in logs, f"the app did not get {name}"
    assert MARKS["volume"].encode() in node.fetch(node.public_port("marked"), "/kept").body
    processes = _processes(node)
    assert {"supervisor", "zygote", "log writer", "podman", "leash.0", "leash.1"} <= processes.keys()
    assert {"conmon", "gocryptfs"} <= {name.split()[0] for name in processes}
    until(lambda: set(processes.values()) <= node.watcher.seen, "every process looked at")  # type: ignore[attr-defined]
    assert _on_the_disk(node) == []


def test_what_goes_wrong_is_not_told_with_its_words(node: Node) -> None:
    broken = node.demo_manifest("broken", f"command: [/bin/{MARKS['broken']}]\n")
    asks = node.demo_manifest(
        "asks", f"healthcheck: {{http: {{port: web, path: /{MARKS['path']}}}, interval: 1s, retries: 1}}\n"
    )
    built = node.demo_manifest("built").replace(
        "image: localhost/piccolo-demo:1\npull: never",
        f"build: {{containerfile: 'FROM nowhere.invalid/{MARKS['containerfile']}'}}",
    )
    for name, manifest in {"broken": broken, "asks": asks, "built": built}.items():
        node.install(manifest, running=False)
        expected = {"broken": "(command[0])", "asks": "404", "built": "(build.containerfile, line 1)"}[name]
        until(lambda name=name, expected=expected: expected in node.app(name)["reason"], f"{name} says why", 30)
    refused = node.api("POST", "/apps", f"name: x\nimage: [{MARKS['extension']}]\n", kind="application/yaml")
    assert refused.status == 400
    for name in ("broken", "asks", "built"):
        assert node.api("DELETE", f"/apps/{name}?purge=true").status in (200, 202, 204)
    assert _on_the_disk(node) == []


def test_neither_a_password_nor_the_recovery_words_are_kept(node: Node) -> None:
    wrong = node.api("POST", "/auth/login", {"password": MARKS["wrong-password"]})
    assert wrong.status in (401, 403, 429), wrong
    words = node.api("POST", "/crypto/recovery", {"password": PASSWORD}).json["words"]
    changed = node.api("POST", "/crypto/password", {"old": PASSWORD, "new": MARKS["password"]})
    assert changed.status in (200, 204), changed
    reset = node.api("POST", "/crypto/reset", {"words": words, "new": PASSWORD})
    assert reset.status in (200, 204), reset
    text = words if isinstance(words, str) else " ".join(words)
    hidden = [PASSWORD, *(sep.join(text.split()[:3]) for sep in (" ", ",", "\n", '","'))]
    for file, content in on_the_disk(node.folder):
        assert not [word for word in hidden if word.encode() in content], file
    assert _on_the_disk(node) == []


def test_nothing_is_left_by_an_update_a_crash_and_a_stop(node: Node) -> None:
    node.unlock()
    node.wait_app("marked")
    changed = _manifest(node, f"echo {MARKS['next']}; exec httpd -f -p 80 -h /data")
    assert node.api("PUT", "/apps/marked", changed, kind="application/yaml").status in (200, 202)
    until(lambda: MARKS["next"] in node.ctl("apps", "logs", "marked").stdout, "the new version speaks", 20)
    node.kill()
    assert _on_the_disk(node) == [], "after kill -9 of the supervisor"
    node.start()
    node.unlock()
    node.wait_app("marked")
    node.stop(signal.SIGTERM)
    assert _on_the_disk(node) == [], "while containers run on"
    node.start()
    node.unlock()
    node.wait_app("marked")
    node.stop(signal.SIGINT)
    assert _on_the_disk(node) == [], "after a full stop"
    node.start()
    node.unlock()
    node.wait_app("marked")
    assert MARKS["volume"].encode() in node.fetch(node.public_port("marked"), "/kept").body, "its data outlived all that"


def test_no_process_of_the_node_may_dump_its_memory(node: Node) -> None:
    for name, pid in _processes(node).items():
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        assert next(line for line in limits if line.startswith("Max core")).split()[4:6] == ["1", "1"], name


@pytest.mark.skipif(
    Path("/proc/sys/kernel/core_pattern").read_text().strip() != "core"
    or resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY,
    reason="this host gives its core dumps to a program or forbids them",
)
def test_a_signal_that_dumps_core_leaves_none(node: Node) -> None:
    assert _dumps_by_default(), "where anything else leaves one"
    folders = {ROOT, *(Path(os.readlink(f"/proc/{pid}/cwd")) for pid in _processes(node).values())}
    before = {path for folder in folders for path in folder.glob("core*")}
    for number in (signal.SIGABRT, signal.SIGQUIT):
        for name in [*(spec.name for spec in MODULES), "zygote", "log writer", "leash.0", "leash.1", "podman"]:
            _end(node, name, number)
        until(node.all_ready, "all is back", 60)
    supervisor = _processes(node)["supervisor"]
    os.kill(supervisor, signal.SIGABRT)
    assert node.process is not None
    assert node.process.wait(10) == -signal.SIGABRT
    node.process = None
    assert {path for folder in folders for path in folder.glob("core*")} == before
    assert not [path for path in node.folder.rglob("core*") if path.is_file() and not path.is_symlink()]
    node.start()


def test_no_process_that_ever_ran_was_told_in_its_arguments_or_environment(node: Node) -> None:
    watcher = node.watcher  # type: ignore[attr-defined]
    assert len(watcher.seen) > _FEWEST
    assert watcher.found == set()


def _end(node: Node, name: str, number: int) -> None:
    """Sends the signal, and waits for another process of that name."""
    old = until(lambda: _processes(node).get(name, 0), f"{name} is there", 30)
    os.kill(old, number)
    try:
        until(lambda: _processes(node).get(name, old) not in (0, old), f"{name} replaced", 3)
    except Failed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(old, signal.SIGKILL)  # it may ignore the signal: then there is no dump either
        until(lambda: _processes(node).get(name, old) not in (0, old), f"{name} replaced", 60)


def _dumps_by_default() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["sh", "-c", "kill -ABRT $$"], cwd=folder, check=False)
        return any(Path(folder).glob("core*"))

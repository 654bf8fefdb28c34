"""Something dies in the middle of a change of an app: it ends old or new, never neither, and nothing is left of what is gone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from piccolod.leadership import leash_table
from tests.node import DEMO_IMAGE, Failed, Node, Reply, until

SEED = int(os.environ.get("PICCOLO_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
NEW_IMAGE = DEMO_IMAGE.replace(":1", ":2")
VICTIMS = ["apps", "persistence", "volumes", "podman", "everything"]
APP = "shop"
CONTAINER = f"piccolo-{APP}"
UPDATE = {"image": NEW_IMAGE, "without_snapshot": True}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        node.start()
        node.unlock()
        node.load_demo_image()
        # Another image with other content in its description; nothing is fetched.
        subprocess.run(
            ["podman", "--root", node.state / "containers", "--runroot", node.run / "containers", "build", "--quiet",
             "--tag", NEW_IMAGE, "-"],
            input=f"FROM {DEMO_IMAGE}\nLABEL edition=2\n".encode(), check=True, capture_output=True, timeout=60,
            env={**os.environ, "CONTAINERS_CONF": str(node.run / "containers.conf")},
        )  # fmt: skip
        yield node


class Change:
    """A request under way, as one client sends it, and what it was answered: None when the answer was lost."""

    def __init__(self, node: Node, method: str, path: str, body: Any = None) -> None:
        self.answer: Reply | None = None
        self._thread = threading.Thread(target=self._send, args=(node, method, path, body))
        self._thread.start()

    def _send(self, node: Node, method: str, path: str, body: Any) -> None:
        with suppress(OSError, ValueError):
            self.answer = node.api(method, path, body, timeout_s=70)

    def end(self) -> bool:
        """Whether it was acknowledged."""
        self._thread.join(75)
        return self.answer is not None and self.answer.status in (200, 202, 204)


def kill(node: Node, victim: str) -> None:
    if victim == "everything":
        node.kill()
        node.start()
        node.unlock()
    else:
        with suppress(ProcessLookupError):
            node.signal(victim, signal.SIGKILL)
    until(node.all_ready, f"all ready after the death of {victim}", 15)


def install(node: Node) -> None:
    manifest = node.demo_manifest(APP, "storage: {persistent: {data: {container: /data, size_limit: 16MiB}}}\n")
    node.install(manifest)


def marker(node: Node) -> Path:
    return node.run / "mounts" / f"{APP}.data" / "marker"


def known(node: Node) -> bool:
    return node.api("GET", f"/apps/{APP}").status == 200


def traces(node: Node) -> dict[str, Any]:
    """What there is of the app on this host, by the host's own word."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return {
        "containers": node.podman("ps", "-a", "--format", "{{.Names}}").split().count(CONTAINER),
        "mounts": [path for path in mounts if path.startswith(str(node.folder)) and f"{APP}.data" in path],
        "loops": [text for text in _loops() if str(node.folder) in text],
        "networks": [name for name in node.podman("network", "ls", "--format", "{{.Name}}").split() if APP in name],
        "leashed": [entry.container for entry in leash_table.read(node.run / "leash").values() if APP in entry.resource],
        "files": [path.name for path in (node.run / "app-files").glob(APP)],
        "routes": [route for route in node.get("/routes") if route["app"] == APP],
        "volumes": [path.name for path in (node.state / "volumes").iterdir() if f"{APP}.data" in path.name],
    }


def _loops() -> Iterator[str]:
    """The files behind this host's loop devices."""
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            yield file.read_text()


def serves(node: Node, image: str = "") -> bool:
    """The one version that the store names is the one that runs, and it answers."""
    reply = node.api("GET", f"/apps/{APP}")
    if reply.status != 200:
        return False
    app = reply.json
    if app["state"] != "running" or (image and app["image"] != image):
        return False
    runs = node.podman("inspect", "--format", "{{.State.Status}} {{.ImageName}}", CONTAINER).split()
    return runs == ["running", app["image"]] and not _answers(node)


def _answers(node: Node) -> str:
    """Empty: it does."""
    try:
        status = node.fetch(node.public_port(APP)).status
        return "" if status == 200 else str(status)
    except OSError as error:
        return repr(error)


def check_whole(node: Node, acknowledged: bool, new: str, old: str) -> None:
    try:
        if acknowledged:
            until(lambda: serves(node, new), f"the app on {new}, as was promised", 20, 0.1)
        else:
            until(lambda: serves(node, old) or serves(node, new), "the app on the old image or the new one", 20, 0.1)
    except Failed as error:
        runs = node.podman("inspect", "--format", "{{.State.Status}} {{.ImageName}}", CONTAINER)
        raise Failed(f"{error}; {runs}; answers: {_answers(node)}; {node.api('GET', f'/apps/{APP}')}") from None
    assert traces(node)["containers"] == 1
    assert marker(node).read_text() == "precious"


def check_gone(node: Node, acknowledged: bool, *, purged: bool) -> None:
    """Or else it is there whole, and a second try removes it."""
    try:
        until(lambda: not known(node) or serves(node), "the app gone, or whole", 20, 0.1)
    except Failed as error:
        app, podman = node.app(APP), node.modules()["podman"]
        raise Failed(f"{error}; it is {app['state']}: {app['reason']}; podman is {podman['state']}") from None
    if known(node):
        assert not acknowledged, "an uninstall that was acknowledged did not happen"
        assert marker(node).read_text() == "precious"
        assert node.api("DELETE", f"/apps/{APP}?purge={str(purged).lower()}").status == 204
    nothing = {"containers": 0, "mounts": [], "loops": [], "networks": [], "leashed": [], "files": [], "routes": [],
               "volumes": [] if purged else [f"{APP}.data"]}  # fmt: skip
    with suppress(AssertionError):
        until(lambda: traces(node) == nothing, "nothing left", 15, 0.1)
    assert traces(node) == nothing


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_death_in_the_middle_of_each_change_of_an_app(node: Node, victim: str) -> None:
    chance = random.Random(f"{SEED} {victim}")
    print(f"PICCOLO_TEST_SEED={SEED}")

    def meanwhile(method: str, path: str, body: Any = None, longest_s: float = 0.6) -> bool:
        change = Change(node, method, path, body)
        time.sleep(chance.uniform(0, longest_s))
        kill(node, victim)
        return change.end()

    install(node)
    marker(node).write_text("precious")
    check_whole(node, meanwhile("POST", f"/apps/{APP}/update", UPDATE), NEW_IMAGE, DEMO_IMAGE)
    if not serves(node, NEW_IMAGE):
        assert node.api("POST", f"/apps/{APP}/update", UPDATE).status == 200
        until(lambda: serves(node, NEW_IMAGE), "updated", 20, 0.1)
    check_whole(node, meanwhile("POST", f"/apps/{APP}/revert", {"without_snapshot": True}), DEMO_IMAGE, NEW_IMAGE)
    check_gone(node, meanwhile("DELETE", f"/apps/{APP}"), purged=False)
    install(node)
    assert marker(node).read_text() == "precious", "the data of an app that was not purged is there for the next one"
    check_gone(node, meanwhile("DELETE", f"/apps/{APP}?purge=true"), purged=True)

"""An app's network or container is broken under it, by hand or by a podman that dies half way: it serves again by itself."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from services.apps.spec import bridge_name
from tests.node import Failed, Node, until

SEED = int(os.environ.get("PICCOLO_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
APP = "shop"
CONTAINER = f"piccolo-{APP}"
# Of a second of patience, a stop and a start, on a busy machine; the timer that finds what no hint told is 10 s.
AGAIN_S = 9.0


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        node.start()
        node.unlock()
        node.load_demo_image()
        install(node)
        yield node


def install(node: Node) -> None:
    node.install(node.demo_manifest(APP, "stop: {grace: 1s}\n"))


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


def bridge(node: Node) -> str:
    return bridge_name(node.state, APP)


def answers(node: Node) -> bool:
    try:
        return node.fetch(node.public_port(APP)).status == 200
    except OSError:
        return False


def serves(node: Node) -> bool:
    reply = node.api("GET", f"/apps/{APP}")
    return reply.status == 200 and bool(reply.json["state"] == "running") and answers(node)


def until_mended(node: Node, broken: str, within_s: float) -> None:
    """First the app says that something is broken, then it serves."""
    heard: list[str] = []

    def says() -> bool:
        app = node.app(APP)
        heard.append(f"{app['state']}: {app['reason']}")
        return broken in heard[-1]

    began = time.monotonic()
    try:
        until(says, f"the app says {broken!r}", within_s)
    except Failed as error:
        raise Failed(f"{error}; it said {sorted(set(heard))}") from None
    until(lambda: serves(node), "the app serves again", max(1.0, began + within_s - time.monotonic()), 0.1)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (["link", "delete"], "the bridge of its network is gone"),
        (["address", "flush", "dev"], "the bridge of its network has no route to 10."),
        (["link", "set", "down"], "the bridge of its network is down"),
    ],
)
def test_a_bridge_that_is_broken_under_a_running_app(node: Node, how: list[str], says: str) -> None:
    until(lambda: serves(node), "the app serves")
    ip(*how, bridge(node))
    until_mended(node, says, AGAIN_S)


def test_a_container_that_was_cut_off_its_bridge(node: Node) -> None:
    until(lambda: serves(node), "the app serves")
    links = json.loads(subprocess.check_output(["ip", "-json", "link", "show", "master", bridge(node)]))
    ip("link", "delete", links[0]["ifname"])
    until_mended(node, "it is not attached to the bridge of its network", AGAIN_S)


def test_a_bridge_that_was_left_half_made_by_a_start_that_broke_off(node: Node) -> None:
    assert node.api("POST", f"/apps/{APP}/stop").status == 200
    until(lambda: node.app(APP)["state"] == "stopped", "stopped")
    with suppress(subprocess.CalledProcessError):  # a stop takes it away
        ip("link", "delete", bridge(node))
    ip("link", "add", bridge(node), "type", "bridge")
    assert node.api("POST", f"/apps/{APP}/start").status == 200
    until(lambda: serves(node), "the app serves", AGAIN_S, 0.1)


def test_a_network_that_podman_has_forgotten(node: Node) -> None:
    until(lambda: serves(node), "the app serves")
    next((node.state / "networks").glob(f"{CONTAINER}.json")).unlink()
    assert serves(node), "what runs has its network"
    os.kill(int(node.podman("inspect", "--format", "{{.State.Pid}}", CONTAINER)), signal.SIGKILL)
    until_mended(node, "network not found", 20)


def test_podman_killed_at_any_instant_of_a_change(node: Node) -> None:
    """Its service is restarted by request, which is a SIGKILL that leaves no crash loop to wait for."""
    chance = random.Random(SEED)
    print(f"PICCOLO_TEST_SEED={SEED}")
    changes = {
        "restart": ("POST", f"/apps/{APP}/restart"),
        "stop": ("POST", f"/apps/{APP}/stop"),
        "start": ("POST", f"/apps/{APP}/start"),
        "uninstall": ("DELETE", f"/apps/{APP}"),
    }
    for number in range(24):
        name = ("restart", "stop", "start", "uninstall")[number % 4]
        change = threading.Thread(target=_send, args=(node, *changes[name]))
        change.start()
        time.sleep(chance.uniform(0, 0.5))
        node.supervisor("restart", name="podman")
        change.join(30)
        try:
            until(lambda name=name: _ended(node, name), f"{name} has ended", 20, 0.1)
        except Failed as error:
            app = node.api("GET", f"/apps/{APP}")
            raise Failed(f"{error}, after round {number}: {app}") from None
        if name == "uninstall" and node.api("GET", f"/apps/{APP}").status == 404:
            install(node)


def _send(node: Node, method: str, path: str) -> None:
    with suppress(OSError, ValueError):
        node.api(method, path, timeout_s=30)


def _ended(node: Node, change: str) -> bool:
    """Whether or not it was heard, the app is what it was or what was asked for, and at rest."""
    reply = node.api("GET", f"/apps/{APP}")
    if reply.status == 404:
        return change == "uninstall"
    return serves(node) or bool(change in ("stop", "start") and reply.json["state"] == "stopped")

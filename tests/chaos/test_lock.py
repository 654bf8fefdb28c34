"""A lock with something dying in the middle of it ends in one of two ways: locked and silent, or failed and all as before."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.node import Node, Reply, until

SEED = int(os.environ.get("PICCOLO_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
ROUNDS = 5  # a module that dies more often within a minute is held back by its supervisor


@contextmanager
def lock_under_way(node: Node) -> Iterator[list[Reply]]:
    answers: list[Reply] = []
    thread = threading.Thread(target=lambda: answers.append(node.api("POST", "/crypto/lock", timeout_s=70)))
    thread.start()
    try:
        yield answers
    finally:
        thread.join(75)
    assert answers, "the lock was never answered"


def container_pid(node: Node) -> int:
    return int(node.podman("inspect", "--format", "{{.State.Pid}}", "piccolo-hello"))


def kill(node: Node, module: str) -> None:
    instance = node.instance(module)
    node.signal(module, signal.SIGKILL)
    until(lambda: node.is_replaced(module, instance), f"{module} replaced", 10)


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def check_locked_and_silent(node: Node, pid: int) -> None:
    assert node.get("/crypto/status")["locked"]
    until(lambda: not lives(pid), "the app stopped", 15)
    time.sleep(1.0)  # the promise itself: it does not come back
    assert "piccolo-hello" not in node.podman("ps", "--format", "{{.Names}}")
    until(lambda: not (node.run / "app-files").is_mount() or not any((node.run / "app-files").iterdir()), "no secret left", 5)


def test_apps_dies_at_any_instant_of_a_lock(node: Node) -> None:
    chance = random.Random(SEED)
    print(f"PICCOLO_TEST_SEED={SEED}")
    for number in range(ROUNDS):
        pid = container_pid(node)
        with lock_under_way(node):
            if number % 2:
                until(lambda: not lives(pid), "the app stopped for the lock", 15, 0.001)  # noqa: B023
                time.sleep(chance.uniform(0, 0.05))
            else:
                time.sleep(chance.uniform(0, 0.6))
            kill(node, "apps")
        check_locked_and_silent(node, pid)
        node.unlock()
        node.wait_app("hello")
        assert node.fetch(node.public_port("hello")).status == 200


def test_persistence_dies_before_the_lock_and_the_apps_are_back_before_their_patience_ends(node: Node) -> None:
    """Its key is with the supervisor, so the lock has failed."""
    pid = container_pid(node)
    with lock_under_way(node) as answers:
        until(lambda: not lives(pid), "the app stopped for the lock", 15, 0.001)
        node.signal("persistence", signal.SIGKILL)
    if answers[0].status == 200:  # the lock was faster
        node.unlock()
    node.wait_app("hello", within_s=15)


@pytest.fixture(autouse=True)
def _whole_again(node: Node) -> Iterator[None]:
    yield
    until(node.all_ready, "every module ready again", 30)

"""Ctrl-C ends everything, whatever `apps` is doing at that moment: no process, no container, no mount stays."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod.leadership import leash_table
from tests.node import Node, until

_VOLUME = "storage: {persistent: {data: {container: /data, size_limit: 64MiB}}}\n"
_STUBBORN = "stop: {grace: 20s}\ncommand: [/bin/sh, -c, \"trap '' TERM; httpd -p 80 -h /; while :; do sleep 1; done\"]\n"


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as node:
        node.start()
        node.unlock()
        node.load_demo_image()
        yield node


def _inits(node: Node) -> list[int]:
    return [entry.pid for entry in leash_table.read(node.run / "leash").values()]


def _mounts(node: Node) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{node.folder}/")]


def _ends_whole(node: Node, within_s: float = 12.0) -> None:
    inits = _inits(node)
    assert inits, "a container is under guard"
    assert node.stop(signal.SIGINT, within_s) < within_s
    until(lambda: not node.survivors(), "no process is left", 2)
    assert not [pid for pid in inits if os.path.exists(f"/proc/{pid}")]
    assert _mounts(node) == []
    assert _inits(node) == []


def _runs_again(node: Node) -> None:
    node.start()
    node.unlock()
    until(lambda: _is_running(node), "the app runs again", 20)


def _is_running(node: Node) -> bool:
    with contextlib.suppress(OSError):  # `api` begins anew with the store that the unlock opened
        return bool(node.app("hello")["state"] == "running")
    return False


@pytest.mark.timeout(180)
def test_ctrl_c_while_apps_restarts_ends_its_containers_too(node: Node) -> None:
    node.install(node.demo_manifest(extra=_VOLUME))
    for after_s in (0.0, 0.004, 0.012, 0.05):
        node.signal("apps", signal.SIGKILL)
        time.sleep(after_s)  # the moment is the test
        _ends_whole(node)
        _runs_again(node)
    _ends_whole(node)
    shutil.rmtree(node.state)


def test_ctrl_c_while_apps_is_frozen_ends_its_containers_too(node: Node) -> None:
    node.install(node.demo_manifest(extra=_VOLUME))
    node.signal("apps", signal.SIGSTOP)
    _ends_whole(node)
    assert "killing containers" not in node.tail(), "its next life ends them politely"
    _runs_again(node)


@contextlib.contextmanager
def _never_there(node: Node) -> Iterator[None]:
    """Each new process of `apps` is killed as soon as it is seen."""
    end = threading.Event()

    def kill() -> None:
        while not end.wait(0.002):
            with contextlib.suppress(OSError, KeyError, ValueError, AssertionError, TypeError):
                if pid := node.pid("apps"):
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(10)


def test_ctrl_c_kills_the_containers_of_an_apps_that_does_not_come_back(node: Node) -> None:
    node.install(node.demo_manifest(extra=_VOLUME))
    with _never_there(node):
        until(lambda: node.modules()["apps"]["state"] == "crashlooping", "a crash loop", 15)
        _ends_whole(node, 20.0)
    assert "killing containers that apps did not end" in node.tail()
    assert "killed the containers" in node.tail()
    _runs_again(node)


def test_a_second_ctrl_c_kills_containers_that_take_their_time(node: Node) -> None:
    node.install(node.demo_manifest(extra=_VOLUME + _STUBBORN))
    assert node.process is not None
    node.process.send_signal(signal.SIGINT)
    until(lambda: node.modules()["apps"]["state"] == "stopping", "apps ends its containers")
    time.sleep(0.5)  # twice within a moment is one key press
    _ends_whole(node, 5.0)

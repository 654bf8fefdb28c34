"""Ctrl-C ends the supervisor whatever podman is doing, or where there is none."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from piccolod import podman_conf
from piccolod.config import Config, Node
from piccolod.errors import Busy
from tests.unit.supervisor.conftest import TestNode, gone, row, wait_for

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def test_it_ends_where_nothing_was_ever_prepared_for_podman(make_node) -> None:
    """As without podman or a runtime for it: the launch says so, and makes no folder."""
    node = make_node([row("broker")], externals=True)
    node.paths.podman_root.write_text("in the way")
    node.start(ready=False)
    wait_for(lambda: node.module("podman")["reason"], "the launch has failed")
    node.paths.podman_root.unlink()
    assert node.stop(signal.SIGINT) == 0
    wait_for(lambda: all(gone(pid) for pid in node.seen), "all have ended")


def test_release_waits_for_nobody_and_makes_nothing(tmp_path: Path) -> None:
    config = Config(node=Node(name="n", state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")))
    config.paths.run.mkdir()
    podman_conf.release(config)
    assert not config.paths.state.exists()
    with open(config.paths.podman_run.with_suffix(".lock"), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            podman_conf.release(config)


def test_a_launch_that_hangs_is_ended_too(make_node) -> None:
    node: TestNode = make_node([row("broker")], externals=True)
    node.paths.run.mkdir(mode=0o710)
    with open(node.paths.podman_socket.with_suffix(".lock"), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # which the launch waits for, as it would for a disk
        node.start(ready=False)
        launch = wait_for(lambda: waiting(node), "podman is on its way")
        assert node.stop(signal.SIGINT) == 0
        wait_for(lambda: gone(launch), "the launch has ended")


def waiting(node: TestNode) -> int:
    """The launch of this node that waits: it holds the lock's file open."""
    lock = str(node.paths.podman_socket.with_suffix(".lock"))
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and process.name != str(os.getpid()):
            try:
                if any(os.readlink(fd) == lock for fd in (process / "fd").iterdir()):
                    return int(process.name)
            except OSError:
                continue
    return 0

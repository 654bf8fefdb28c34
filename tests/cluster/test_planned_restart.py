"""A member is restarted under a service manager, as after an update of piccolod: its apps run on, and the kernel moves at once."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bed.cluster import Cluster
from tests.bed.forming import form, leader, members, unlock, wait_leader
from tests.bed.machine import Machine
from tests.node import PICCOLOD, until

# systemd.exec(5), of ExecStopPost= after an exit code of 0.
_IN_ORDER = {"SERVICE_RESULT": "success", "EXIT_CODE": "exited", "EXIT_STATUS": "0"}


@pytest.fixture(scope="module")
def three(cluster: Callable[[int], Cluster]) -> Cluster:
    """With a span that a start on a busy computer keeps."""
    made = cluster(3)
    made.start()
    form(made, "patient")
    until(lambda: all(each["voter"] for each in members(made["n1"]).values()), "three votes", 60)
    made.load_demo_image()
    return made


def restart(machine: Machine) -> str:
    """What `systemctl restart` does with deploy/systemd; what the hook said."""
    machine.stop(signal.SIGTERM)
    hook = machine.inside(str(PICCOLOD), "--config", str(machine.config_file), "--after-crash")
    done = subprocess.run(hook, env={**os.environ, **_IN_ORDER}, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    machine.start()
    return done.stdout


def test_apps_of_a_member_run_on_over_its_restart_and_another_node_has_the_kernel(three: Cluster) -> None:
    home = wait_leader(three)
    home.install(home.demo_manifest())
    first = home.members()[int(home.podman("inspect", "--format", "{{.State.Pid}}", "piccolo-hello"))]
    epoch = home.app("hello")["leader"]["epoch"]
    said = restart(home)
    assert "left as it is after a planned end" in said and "1 led container(s) run on" in said, said
    assert Path(f"/proc/{first}").exists()
    unlock(home)
    app = home.wait_app("hello", within_s=60)
    assert home.members()[int(home.podman("inspect", "--format", "{{.State.Pid}}", "piccolo-hello"))] == first
    assert (app["leader"]["node"], app["leader"]["epoch"]) == (home.name, epoch), "the term goes on"
    assert leader(three) is not home


def test_a_member_without_apps_ends_its_session_by_its_restart(three: Cluster) -> None:
    leading = wait_leader(three)
    idle = next(each for each in three.machines if each is not leading and not list((each.run / "leash").glob("*.armed")))
    assert "ended the session" in restart(idle)
    until(lambda: members(leading).get(idle.name, {}).get("state") == "alive", "it is back", 60)

"""The whole piccolod of the kernel's leader dies and its machine lives: the hook of the service manager spares the others the wait."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from piccolod.leadership.page import PageReader
from piccolod.leadership.timing import FAST
from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.forming import leader, members, switch_over, unlock, wait_leader
from tests.bed.machine import Machine
from tests.node import PICCOLOD, until

# What others take without the hook (leadership.md, Time): W after the last heartbeat, which may be h old.
_WITHOUT_S = FAST.span_s - FAST.beat_s


@pytest.fixture(scope="module")
def three(formed: Callable[[int], Cluster]) -> Cluster:
    made = formed(3)
    until(lambda: all(each["voter"] for each in members(made["n1"]).values()), "three votes", 30)
    return made


class Writers:
    """One for each machine, over and over until one write is accepted."""

    def __init__(self, machines: list[Machine]) -> None:
        self.accepted_at = 0.0
        self.rev = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._write, args=(machine,), daemon=True) for machine in machines]
        for thread in self._threads:
            thread.start()

    def _write(self, machine: Machine) -> None:
        while not self.accepted_at:
            with suppress(OSError):
                reply = machine.api("PUT", "/settings", {"title": f"by {machine.name}"}, timeout_s=2)
                with self._lock:
                    if reply.status == 200 and not self.accepted_at:
                        self.accepted_at, self.rev = time.monotonic(), int(reply.headers["piccolo-rev"])
            time.sleep(0.02)

    def join(self, within_s: float) -> float:
        try:
            return float(until(lambda: self.accepted_at, "another node accepts a write", within_s))
        finally:
            self.accepted_at = self.accepted_at or -1.0
            for thread in self._threads:
                thread.join(5)


def kill_tree(machine: Machine) -> None:
    """All that `KillMode=process` and the supervisor's end take along; leashes, podman and containers live."""
    modules = [name for name, module in machine.modules().items() if module["pid"]]
    own = ["etcd"] if machine.named("etcd") else []  # none where its owner keeps it
    faults.kill(machine, "supervisor", "zygote", *own, *modules)
    assert machine.process is not None
    machine.process.wait(10)
    machine.process = None


def hook(machine: Machine) -> list[str]:
    """As `ExecStopPost=` has it."""
    return [str(PICCOLOD), "--config", str(machine.config_file), "--after-crash"]


def after_crash(machine: Machine) -> subprocess.CompletedProcess[str]:
    return subprocess.run(machine.inside(*hook(machine)), capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("_time", [1, 2, 3])
def test_kill_9_of_the_leaders_whole_tree_costs_a_second_and_the_node_comes_back(three: Cluster, _time: int) -> None:
    lost = wait_leader(three)
    others = [machine for machine in three.machines if machine is not lost]
    reader = PageReader(lost.run / "page")
    before = reader.read()
    assert before is not None and before.sid
    kill_tree(lost)
    killed_at = time.monotonic()
    writers = Writers(others)
    hook_at = time.monotonic()
    done = after_crash(lost)
    hooked_s = time.monotonic() - hook_at
    took_s = writers.join(10.0) - killed_at
    print(
        f"{lost.name}: hook {hooked_s * 1000:.0f} ms, write accepted {took_s * 1000:.0f} ms after the kill: {done.stdout.strip()}"
    )
    assert (done.returncode, done.stdout) == (0, "piccolod: released kernel; ended the session\n"), done.stderr
    assert took_s < _WITHOUT_S
    shut = reader.read()
    assert shut is not None and (shut.sid, dict(shut.terms)) == (0, {})
    assert leader(three, lost) in others

    lost.start()
    unlock(lost)
    until(lambda: members(lost).get(lost.name, {}).get("state") == "alive", f"{lost.name} is alive", 20)
    again = until(lambda: (page := reader.read()) is not None and page.sid and page, "a session", 10)
    assert again.sid > before.sid
    reply = lost.api("GET", "/settings", headers={"Piccolo-Min-Rev": str(writers.rev)})
    assert reply.json["title"].startswith("by n")
    assert leader(three) is not lost


def test_kill_9_of_the_hook_itself_is_made_good_by_the_next_start(three: Cluster) -> None:
    lost = wait_leader(three)
    reader = PageReader(lost.run / "page")
    before = reader.read()
    assert before is not None and before.sid
    kill_tree(lost)
    running = lost.spawn(*hook(lost))
    until(lambda: (page := reader.read()) is not None and not page.sid, "the hook has shut the page", 10, 0.001)
    running.kill()
    running.wait(10)
    assert "released" not in lost.tail(), "it was killed before it released anything"
    lost.start()
    again = until(lambda: (page := reader.read()) is not None and page.sid and page, "a session", 20)
    assert again.sid > before.sid
    unlock(lost)
    wait_leader(three)
    until(lambda: members(lost).get(lost.name, {}).get("state") == "alive", f"{lost.name} is alive", 20)


def test_an_app_of_the_dead_tree_is_dead_when_its_term_is_released_and_starts_anew_with_the_node(three: Cluster) -> None:
    three.load_demo_image()
    lost = wait_leader(three)
    lost.install(lost.demo_manifest())
    first = lost.members()[int(lost.podman("inspect", "--format", "{{.State.Pid}}", "piccolo-hello"))]
    entries = list((lost.run / "leash").glob("*.armed"))
    assert entries, "it is led"
    kill_tree(lost)
    assert Path(f"/proc/{first}").exists(), "containers outlive the tree"
    done = after_crash(lost)
    assert done.stdout == "piccolod: released kernel, app:hello; ended the session\n", done.stderr
    assert not Path(f"/proc/{first}").exists()
    assert not lost.named("httpd")

    lost.start()
    unlock(lost)
    lost.wait_app("hello", within_s=60)


@pytest.fixture(scope="module")
def two(formed: Callable[[int], Cluster]) -> Cluster:
    """The second is a learner of etcd."""
    return formed(2)


def test_of_two_the_first_is_left_for_its_next_start_and_the_second_released_to_the_first(two: Cluster) -> None:
    n1, n2 = two["n1"], two["n2"]
    assert [members(n1)[name]["voter"] for name in ("n1", "n2")] == [True, False]
    switch_over(two, n2)
    kill_tree(n2)
    done = after_crash(n2)
    assert done.stdout == "piccolod: released kernel; ended the session\n", done.stderr
    until(lambda: leader(two, n2) is n1, "the first leads at once", _WITHOUT_S)
    n2.start()
    until(lambda: members(n1).get("n2", {}).get("state") == "alive", "the second is back", 20)

    kill_tree(n1)
    done = after_crash(n1)
    assert "left as it is: without this node the cluster has no quorum" in done.stdout, done
    n1.start()
    unlock(n1)
    until(lambda: leader(two) in two.machines, "the kernel is led again", 30)

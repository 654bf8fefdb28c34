"""Faults on one node: whatever dies or freezes, the app keeps answering and state converges."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from piccolod.kernel import MODULES
from tests.node import Node, processes_of, until
from tests.poller import Lateness, Poller

MODULE_NAMES = [spec.name for spec in MODULES]
ROUTERS = {"router.0", "router.1"}
# Seconds that a client waits at most. A death alone is mended in 20 ms; the figures are measured by the bench, on a quiet machine.
DEATH_S, ALL_DEAD_S, FREEZE_S = 0.5, 1.0, 3.0


@pytest.fixture(autouse=True)
def _whole_again(node: Node) -> Iterator[None]:
    yield
    if node.process is None:  # a test that failed meanwhile: it is no reason for the next ones to fail
        node.start()
        node.unlock()
    until(node.all_ready, "every module ready after the fault", 20)
    until(lambda: node.app("hello")["state"] == "running", "the app running after the fault", 20)
    assert visits(node.fetch(node.public_port("hello")).body) > 0


def client_of(node: Node) -> Poller:
    """It asks for the page that reads and writes the app's volume."""
    return Poller(node.public_port("hello"), "/", holds=b"Visit number")


def visits(page: bytes) -> int:
    found = re.search(rb"Visit number <b>(\d+)", page)
    return int(found[1]) if found else 0


def check_client(client: Poller, within_s: float, in_flight: int = 0) -> None:
    """It was served all the time, by an app that kept what it wrote before."""
    assert len(client.failures()) <= in_flight, client.failures()
    assert client.longest_s() <= within_s, sorted(client.answers, key=lambda answer: answer[1])[-3:]
    counted = [visits(page) for page in client.bodies]
    assert counted == sorted(set(counted)), "a visit that was written was lost"


def container_of(node: Node) -> str:
    """Its id, once apps has looked at it."""
    return str(node.wait_app("hello")["nodes"]["n1"]["container_id"])


def test_all_modules_killed_at_once_come_back_and_a_client_hardly_notices(node: Node) -> None:
    """The first of this file: who died before is started again only after a pause."""
    container = container_of(node)
    before = {name: module for name, module in node.modules().items() if name in MODULE_NAMES}
    with client_of(node) as client:
        for module in before.values():
            os.kill(module["pid"], signal.SIGKILL)
        for name, module in before.items():
            until(lambda name=name, module=module: node.is_replaced(name, module["instance"]), f"{name} replaced", 10)
        time.sleep(0.3)
    check_client(client, ALL_DEAD_S, in_flight=3)
    assert container_of(node) == container
    assert node.get("/crypto/status")["locked"] is False


@pytest.mark.parametrize("module", MODULE_NAMES)
def test_kill_9_of_a_module_is_not_seen_by_a_client(node: Node, module: str) -> None:
    container, instance = container_of(node), node.instance(module)
    with client_of(node) as client:
        node.signal(module, signal.SIGKILL)
        until(lambda: node.is_replaced(module, instance), f"{module} replaced and ready", 5)
        time.sleep(0.3)
    check_client(client, DEATH_S, in_flight=3 if module in ROUTERS else 0)
    assert container_of(node) == container


@pytest.mark.parametrize("module", MODULE_NAMES)
def test_a_frozen_module_is_replaced_and_a_client_waits_at_most_for_that(node: Node, module: str) -> None:
    container, instance = container_of(node), node.instance(module)
    with client_of(node) as client:
        began = time.monotonic()
        node.signal(module, signal.SIGSTOP)
        until(lambda: node.is_replaced(module, instance), f"{module} replaced and ready", 5)
        took = time.monotonic() - began
        time.sleep(0.3)
    assert took <= FREEZE_S
    check_client(client, FREEZE_S if module in ROUTERS else DEATH_S, in_flight=3 if module in ROUTERS else 0)
    assert container_of(node) == container


@pytest.mark.parametrize("program", ["leash.0", "leash.1", "podman"])
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_program_beside_the_modules_is_replaced_and_the_container_runs_on(node: Node, program: str, fault: int) -> None:
    container, pid = container_of(node), node.pid(program)
    with client_of(node) as client:
        os.kill(pid, fault)
        until(lambda: node.modules()[program]["state"] == "ready" and node.pid(program) != pid, f"{program} replaced", 30)
        time.sleep(0.3)
    check_client(client, DEATH_S)
    assert container_of(node) == container


def test_persistence_killed_does_not_lock_the_node(node: Node) -> None:
    instance = node.instance("persistence")
    node.signal("persistence", signal.SIGKILL)
    until(lambda: node.is_replaced("persistence", instance), "persistence replaced", 5)
    until(lambda: node.get("/crypto/status")["locked"] is False, "unlocked by the key that the supervisor kept", 5)
    assert node.app("hello")["state"] == "running"


def test_the_container_killed_from_outside_serves_again(node: Node) -> None:
    pid = int(node.podman("inspect", "--format", "{{.State.Pid}}", "piccolo-hello"))
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    until(lambda: _serves(node), "the app serving again", 10)
    assert time.monotonic() - began < 3.0


def test_the_encryption_of_a_volume_killed_brings_the_app_back_with_its_data(node: Node) -> None:
    port = node.public_port("hello")
    (pid,) = [pid for pid in processes_of(node.folder) if _comm(pid) == "gocryptfs"]
    before = visits(node.fetch(port).body)
    os.kill(pid, signal.SIGKILL)
    until(lambda: _visits(node, port) > before, "the app serving again, with its data", 10)
    with client_of(node) as client:
        time.sleep(0.3)
    check_client(client, DEATH_S)
    assert visits(client.bodies[0]) > before


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_the_zygote_is_replaced_modules_still_restart_and_the_app_serves_on(node: Node, fault: int) -> None:
    container = container_of(node)
    zygote, instance = _zygote(node), node.instance("telemetry")
    with client_of(node) as client:
        os.kill(zygote, fault)
        node.signal("telemetry", signal.SIGKILL)
        until(lambda: node.is_replaced("telemetry", instance), "telemetry replaced without a zygote", 10)
        until(lambda: _zygote(node) not in (0, zygote), "another zygote", 10)
    check_client(client, DEATH_S)
    assert container_of(node) == container


@pytest.mark.parametrize("lose", [Path.unlink, lambda page: os.truncate(page, 0)], ids=["removed", "emptied"])
def test_a_lost_deadline_page_stops_the_app_until_there_is_another_and_ends_no_process_but_consensus(
    node: Node, lose: Callable[[Path], None]
) -> None:
    container = int(node.podman("inspect", "--format", "{{.State.Pid}}", "piccolo-hello"))
    port = node.public_port("hello")
    assert node.process is not None
    supervisor, instance = node.process.pid, node.instance("consensus")
    others = {name: module["pid"] for name, module in node.modules().items() if name != "consensus"}
    lose(node.run / "page")
    until(lambda: not _alive(container), "the container is ended: nobody can see its term", 2)
    until(lambda: node.is_replaced("consensus", instance), "consensus writes to another page", 5)
    until(lambda: _serves(node, port), "the app serving again", 10)
    assert node.process.pid == supervisor and _alive(supervisor)
    assert {name: module["pid"] for name, module in node.modules().items() if name != "consensus"} == others


def test_the_supervisor_killed_while_all_is_frozen_leaves_containers_leashes_and_podman_alone(node: Node) -> None:
    container = container_of(node)
    assert node.process is not None
    supervisor = node.process.pid
    until(lambda: _spares(node, supervisor), "a spare waits", 20)
    tree = _descendants(supervisor)
    names = {name: module["pid"] for name, module in node.modules().items()}
    assert {names[name] for name in MODULE_NAMES} < tree
    for pid in tree:
        os.kill(pid, signal.SIGSTOP)
    machine = Lateness()
    machine.begin()
    node.kill()
    killed_at = time.monotonic()
    until(lambda: not [pid for pid in tree if _alive(pid)], "nobody of the tree", 5)
    gone_at = time.monotonic()
    machine.end()
    assert gone_at - killed_at - machine.within_s(killed_at, gone_at) <= 0.5
    for name in ("leash.0", "leash.1", "podman"):
        assert _alive(names[name]), name
    assert "piccolo-hello" in node.podman("ps", "--format", "{{.Names}}")
    node.start()
    node.unlock()
    node.wait_app("hello")
    assert container_of(node) == container


def test_the_supervisor_killed_takes_every_module_with_it_and_the_next_one_adopts_the_app(node: Node) -> None:
    container = container_of(node)
    port = node.public_port("hello")
    modules = {name: node.pid(name) for name in MODULE_NAMES}
    node.kill()
    time.sleep(0.5)  # the promise itself: none survives by more than half a second
    survivors = {name: pid for name, pid in modules.items() if _alive(pid)}
    assert survivors == {}
    assert "piccolo-hello" in node.podman("ps", "--format", "{{.Names}}")
    node.start()
    until(lambda: _serves(node, port), "the app reachable again, before anybody unlocks", 10)
    assert node.get("/crypto/status")["locked"] is True
    node.unlock()
    node.wait_app("hello")
    assert container_of(node) == container


def test_a_clean_stop_for_an_upgrade_keeps_the_container_and_takes_under_five_seconds(node: Node) -> None:
    container = container_of(node)
    assert node.stop(signal.SIGTERM) < 5.0
    assert "piccolo-hello" in node.podman("ps", "--format", "{{.Names}}")
    node.start()
    node.unlock()
    node.wait_app("hello")
    assert container_of(node) == container


def _serves(node: Node, port: int = 0) -> bool:
    try:
        return node.fetch(port or node.public_port("hello")).status == 200
    except OSError:
        return False


def _visits(node: Node, port: int) -> int:
    try:
        return visits(node.fetch(port).body)
    except OSError:
        return 0


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def _descendants(pid: int) -> set[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(child) for child in file.read().split()]
    return set(children).union(*(_descendants(child) for child in children))


def _spares(node: Node, supervisor: int) -> set[int]:
    """What waits to become a module."""
    known = {module["pid"] for module in node.modules().values()}
    return _descendants(supervisor) - known - {_zygote(node), int(node.supervisor("tree")["log_writer"]["pid"])}


def _zygote(node: Node) -> int:
    return int(node.supervisor("tree")["zygote"]["pid"] or 0)

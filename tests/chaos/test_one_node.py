"""Faults on one node: whatever dies or freezes, the app keeps answering and state converges."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from piccolod.kernel import MODULES
from tests.node import Node, Poller, until

MODULE_NAMES = [spec.name for spec in MODULES]
ROUTERS = {"router.0", "router.1"}


@pytest.fixture(autouse=True)
def _whole_again(node: Node) -> Iterator[None]:
    yield
    until(node.all_ready, "every module ready after the fault", 20)
    until(lambda: node.app("hello")["state"] == "running", "the app running after the fault", 20)
    assert node.fetch(node.public_port("hello")).status == 200


def container_of(node: Node) -> str:
    """Its id, once apps has looked at it."""
    return str(node.wait_app("hello")["nodes"]["n1"]["container_id"])


@pytest.mark.parametrize("module", MODULE_NAMES)
def test_kill_9_of_a_module_is_not_seen_by_a_client(node: Node, module: str) -> None:
    container, instance = container_of(node), node.instance(module)
    with Poller(node.public_port("hello")) as client:
        os.kill(node.pid(module), signal.SIGKILL)
        until(lambda: node.is_replaced(module, instance), f"{module} replaced and ready", 5)
        time.sleep(0.3)
    in_flight = 3 if module in ROUTERS else 0
    assert len(client.failures()) <= in_flight, client.failures()
    assert container_of(node) == container


@pytest.mark.parametrize("module", MODULE_NAMES)
def test_a_frozen_module_is_replaced_and_a_client_waits_at_most_for_that(node: Node, module: str) -> None:
    container, instance = container_of(node), node.instance(module)
    with Poller(node.public_port("hello")) as client:
        began = time.monotonic()
        os.kill(node.pid(module), signal.SIGSTOP)
        until(lambda: node.is_replaced(module, instance), f"{module} replaced and ready", 5)
        took = time.monotonic() - began
        time.sleep(0.3)
    assert took <= 3.0  # the figure (1.5 s) is measured by the bench; here other tests' load may be beside it
    in_flight = 3 if module in ROUTERS else 0
    assert len(client.failures()) <= in_flight, client.failures()
    assert container_of(node) == container


@pytest.mark.parametrize("program", ["leash.0", "leash.1", "podman"])
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_program_beside_the_modules_is_replaced_and_the_container_runs_on(node: Node, program: str, fault: int) -> None:
    container, pid = container_of(node), node.pid(program)
    with Poller(node.public_port("hello")) as client:
        os.kill(pid, fault)
        until(lambda: node.modules()[program]["state"] == "ready" and node.pid(program) != pid, f"{program} replaced", 30)
        time.sleep(0.3)
    assert client.failures() == []
    assert container_of(node) == container


def test_all_modules_killed_at_once_come_back_by_themselves(node: Node) -> None:
    container = container_of(node)
    instances = {name: node.instance(name) for name in MODULE_NAMES}
    for name in MODULE_NAMES:
        os.kill(node.pid(name), signal.SIGKILL)
    for name in MODULE_NAMES:
        until(lambda name=name: node.is_replaced(name, instances[name]), f"{name} replaced", 10)
    assert container_of(node) == container
    assert node.get("/crypto/status")["locked"] is False


def test_persistence_killed_does_not_lock_the_node(node: Node) -> None:
    instance = node.instance("persistence")
    os.kill(node.pid("persistence"), signal.SIGKILL)
    until(lambda: node.is_replaced("persistence", instance), "persistence replaced", 5)
    until(lambda: node.get("/crypto/status")["locked"] is False, "unlocked by the key that the supervisor kept", 5)
    assert node.app("hello")["state"] == "running"


def test_the_container_killed_from_outside_serves_again(node: Node) -> None:
    pid = int(node.podman("inspect", "--format", "{{.State.Pid}}", "piccolo-hello"))
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    until(lambda: _serves(node), "the app serving again", 10)
    assert time.monotonic() - began < 3.0


def test_the_zygote_killed_or_frozen_is_replaced_and_modules_still_restart(node: Node) -> None:
    for fault in (signal.SIGKILL, signal.SIGSTOP):
        zygote = _zygote(node)
        os.kill(zygote, fault)
        instance = node.instance("telemetry")
        os.kill(node.pid("telemetry"), signal.SIGKILL)
        until(lambda instance=instance: node.is_replaced("telemetry", instance), "telemetry replaced without a zygote", 10)
        until(lambda zygote=zygote: _zygote(node) not in (0, zygote), "another zygote", 10)


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
    node.kill()
    until(lambda: not [pid for pid in tree if _alive(pid)], "nobody of the tree", 0.5)
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

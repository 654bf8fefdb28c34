"""The zygote: dead or frozen, it costs no module its life and no restart more than a moment."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.unit.supervisor.conftest import children, gone, row, wait_for

TABLE = [row("broker"), row("m"), row("n")]


def warm(node) -> int:
    return wait_for(lambda: (found := node.tree()["zygote"])["warm"] and found["pid"], "the zygote is warm")


def parent(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("PPid:"))


def test_forked_modules_are_children_of_the_supervisor_in_sessions_of_their_own(make_node):
    node = make_node(TABLE).start()
    assert node.process is not None
    for each in node.modules().values():
        assert parent(each["pid"]) == node.process.pid
        assert os.getsid(each["pid"]) == each["pid"]


def test_a_module_has_nothing_open_but_what_is_its_own(make_node):
    node = make_node(TABLE).start()
    for name in ("m", "n"):
        links = [os.readlink(f"/proc/{node.pid(name)}/fd/{fd}") for fd in os.listdir(f"/proc/{node.pid(name)}/fd")]
        kinds = sorted(link.partition(":")[0] for link in links if "memfd:pulse" not in link)
        assert kinds == ["/dev/null", "pipe", "pipe", "socket", "socket"], links
        assert len(links) == len(kinds) + 1, links


def test_a_killed_zygote_costs_no_module_its_life_and_is_replaced(make_node):
    node = make_node(TABLE).start()
    old = warm(node)
    before = {name: each["pid"] for name, each in node.modules().items()}
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: (found := node.tree()["zygote"])["warm"] and found["pid"] != old, "a new zygote is warm")
    assert {name: each["pid"] for name, each in node.modules().items()} == before


def test_while_there_is_no_zygote_modules_are_executed(make_node):
    node = make_node(TABLE).start()
    old = warm(node)
    pid = node.pid("m")
    os.kill(old, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    node.wait_replaced("m", pid, timeout_s=2.0)


def test_a_frozen_zygote_is_replaced_before_it_is_needed(make_node):
    node = make_node(TABLE).start()
    old = warm(node)
    os.kill(old, signal.SIGSTOP)
    wait_for(lambda: (found := node.tree()["zygote"])["warm"] and found["pid"] != old, "a new zygote is warm")


def test_a_module_that_dies_while_the_zygote_is_frozen_is_ready_within_a_second(make_node):
    node = make_node(TABLE).start()
    old = warm(node)
    os.kill(old, signal.SIGSTOP)
    pid = node.pid("m")
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    node.wait_replaced("m", pid)
    assert time.monotonic() - began < 1.0


def test_a_module_that_starts_threads_when_imported_is_executed_instead(make_node):
    node = make_node([row("m"), row("t", target="tests.unit.supervisor.threaded_sample:main")]).start()
    assert "it cannot be forked" in node.stderr()
    assert node.process is not None
    assert parent(node.pid("t")) == node.process.pid


def test_an_executed_module_is_replaced_too(make_node):
    node = make_node([row("x", spawn="exec")]).start()
    pid = node.kill("x")
    node.wait_replaced("x", pid)


def test_forks_do_not_share_their_random_numbers(make_node):
    node = make_node([row("m"), row("n")]).start()
    assert node.module("m")["instance"] != node.module("n")["instance"]


def spare_of(node) -> int:
    """The blank process that waits for the next restart."""

    def find() -> list[int]:
        tree = node.tree()
        known = {tree["zygote"]["pid"], tree["log_writer"]["pid"], *(each["pid"] for each in tree["modules"])}
        return [pid for pid in children(node.process.pid) if pid not in known]

    (pid,) = wait_for(lambda: len(found := find()) == 1 and found, "a spare waits")
    node.seen.add(pid)
    return pid


def test_the_next_life_of_a_module_is_a_process_that_waited_for_it(make_node):
    node = make_node(TABLE).start()
    warm(node)
    spare = spare_of(node)
    assert node.wait_replaced("m", node.kill("m"))["pid"] == spare


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_frozen_spare_costs_a_restart_no_more_than_a_moment(make_node, number):
    node = make_node(TABLE).start()
    warm(node)
    spare = spare_of(node)
    os.kill(spare, number)
    began = time.monotonic()
    found = node.wait_replaced("m", node.kill("m"))
    assert found["pid"] != spare
    assert time.monotonic() - began < 0.6
    wait_for(lambda: gone(spare), "the useless spare has ended")


def test_a_spare_ends_with_its_zygote_and_with_the_supervisor(make_node):
    node = make_node(TABLE).start()
    zygote, first = warm(node), spare_of(node)
    os.kill(zygote, signal.SIGKILL)
    wait_for(lambda: gone(first), "the first has ended")
    wait_for(lambda: (found := node.tree()["zygote"])["warm"] and found["pid"] != zygote, "a new zygote is warm")
    second = spare_of(node)
    node.die()
    wait_for(lambda: gone(second), "the second has ended", timeout_s=0.5)


@pytest.mark.parametrize("frozen", ["zygote", "both"])
def test_who_was_released_and_never_reported_does_not_live_beside_its_successor(make_node, frozen):
    node = make_node([row("broker"), row("m", target="tests.unit.supervisor.freezing_sample:main")])
    node.env["TMPDIR"] = str(node.folder)
    node.start()
    warm(node)
    spare = spare_of(node)
    (node.folder / "freeze").write_text(frozen)
    found = node.wait_replaced("m", node.kill("m"), timeout_s=2.0)
    assert int((node.folder / "released").read_text()) == spare, "the freeze came in the instant that is meant"
    assert found["pid"] != spare
    wait_for(lambda: gone(spare), "the one that nobody knew of has ended", timeout_s=1.0)
    assert found["restarts"] == 1, "neither of the two took the other's messages"
    assert [word for _, name, word in node.notes() if name == "m"] == ["start", "ready"] * 2


def test_a_zygote_frozen_in_a_cold_start_is_replaced_within_seconds(make_node):
    node = make_node([row("m", target="tests.unit.supervisor.slow_import_sample:main")]).start(ready=False)
    zygote = node.tree()["zygote"]["pid"]
    os.kill(zygote, signal.SIGSTOP)
    node.wait_ready(timeout_s=6.0)  # a second until it is seen, a second for the import
    assert gone(zygote)


def test_a_stop_while_the_zygote_is_frozen_in_a_cold_start_waits_for_nobody(make_node):
    node = make_node([row("m", target="tests.unit.supervisor.slow_import_sample:main")]).start(ready=False)
    zygote = node.tree()["zygote"]["pid"]
    os.kill(zygote, signal.SIGSTOP)
    began = time.monotonic()
    assert node.stop(signal.SIGTERM) == 0
    assert time.monotonic() - began < 1.0
    wait_for(lambda: gone(zygote), "the zygote has ended too", timeout_s=0.5)

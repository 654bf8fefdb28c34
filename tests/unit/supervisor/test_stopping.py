"""The end: modules in reverse order, in bounded time, and no process survives the supervisor."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.unit.supervisor.conftest import THREE, children, gone, row, wait_for


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_graceful_stop_ends_modules_in_reverse_order_and_leaves_no_process(make_node, number):
    node = make_node(THREE).start()
    node.tree()
    assert node.process is not None
    everyone = [*children(node.process.pid), *node.seen]
    began = time.monotonic()
    assert node.stop(number) == 0
    assert time.monotonic() - began < 5.0
    assert [name for _, name, word in node.notes() if word.startswith("stop")] == ["edge", "store", "broker"]
    wait_for(lambda: all(gone(pid) for pid in everyone), "nobody is left")


def test_a_stop_of_stubborn_modules_takes_less_than_five_seconds(make_node):
    node = make_node(THREE)
    for name in ("broker", "store", "edge"):
        node.words(name, "stubborn")
    node.start()
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < 5.0


def test_ctrl_c_stops_the_apps_first_and_sigterm_lets_them_run(make_node):
    table = [row("broker"), row("apps", needs=["broker"]), row("api", needs=["broker"])]
    node = make_node(table).start()
    node.stop(signal.SIGINT)
    assert [(name, word) for _, name, word in node.notes() if word.startswith("stop")] == [
        ("apps", "stop:apps"), ("api", "stop:apps"), ("broker", "stop:apps"),
    ]  # fmt: skip
    other = make_node(table).start()
    other.stop(signal.SIGTERM)
    assert "stop:apps" not in [word for _, _, word in other.notes()]


def test_a_second_ctrl_c_ends_at_once(make_node):
    node = make_node([row("broker"), row("apps", needs=["broker"])])
    node.words("apps", "stubborn")
    node.start()
    assert node.process is not None
    node.process.send_signal(signal.SIGINT)
    wait_for(lambda: ("apps", "stop:apps") in [(n, w) for _, n, w in node.notes()], "apps was told to stop")
    node.process.send_signal(signal.SIGINT)  # the same key press, told by somebody else too
    time.sleep(0.5)
    assert node.process.poll() is None
    began = time.monotonic()
    assert node.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 2.0


def test_a_stop_during_the_start_is_obeyed(make_node):
    node = make_node(THREE)
    node.words("broker", "never-ready")
    node.start(ready=False)
    wait_for(lambda: any(name == "broker" for _, name, _ in node.notes()), "the broker was started")
    assert node.stop() == 0
    wait_for(lambda: all(gone(pid) for pid in node.seen), "nobody is left")


def test_no_process_survives_the_supervisor_by_half_a_second(make_node):
    node = make_node([row("broker"), row("m"), row("x", spawn="exec")]).start()
    tree = node.tree()
    everyone = [each["pid"] for each in tree["modules"]] + [tree["zygote"]["pid"], tree["log_writer"]["pid"]]
    node.die()
    wait_for(lambda: all(gone(pid) for pid in everyone), f"nobody of {everyone} is left", timeout_s=0.5)


def test_no_process_survives_the_supervisor_by_half_a_second_though_all_were_frozen(make_node):
    node = make_node([row("broker"), row("m"), row("x", spawn="exec")]).start()
    tree = wait_for(lambda: (found := node.tree())["zygote"]["warm"] and found, "the zygote is warm")
    assert node.process is not None
    known = {each["pid"] for each in tree["modules"]} | {tree["zygote"]["pid"], tree["log_writer"]["pid"]}
    everyone = set(wait_for(lambda: set(children(node.process.pid)) - known and children(node.process.pid), "a spare waits"))
    assert known < everyone
    node.seen |= everyone
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    node.die()
    wait_for(lambda: all(gone(pid) for pid in everyone), f"nobody of {everyone} is left", timeout_s=0.5)

"""Processes: made, watched, restarted, stopped in order."""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import time
from pathlib import Path

import pytest

from tests.unit.supervisor.conftest import children, gone, row, wait_for

THREE = [row("broker"), row("store", needs=["broker"]), row("edge", needs=["store"])]


def test_modules_start_when_what_they_need_is_ready(make_node):
    node = make_node(THREE).start()
    starts = {name: float(at) for at, name, word in node.notes() if word == "start"}
    readies = {name: float(at) for at, name, word in node.notes() if word == "ready"}
    assert readies["broker"] <= starts["store"] and readies["store"] <= starts["edge"]


def test_a_module_whose_need_never_gets_ready_waits_and_says_for_what(make_node):
    node = make_node(THREE)
    node.words("store", "never-ready")
    node.start(ready=False)
    wait_for(lambda: node.states().get("edge") == "waiting needs store", "edge says what it waits for")
    assert "start" not in [word for _, name, word in node.notes() if name == "edge"]


def test_waiting_for_what_is_slow_is_no_death(make_node):
    node = make_node([row("broker"), row("m", target="tests.unit.supervisor.samples:impatient", needs=["broker"])])
    node.words("broker", "slow")
    node.start()
    assert node.module("m")["restarts"] == 0
    assert node.module("m")["state"] == "ready"


def test_a_killed_module_is_ready_again_within_20_ms(make_node):
    node = make_node([row(f"m{n}") for n in range(8)]).start()
    wait_for(lambda: node.tree()["zygote"]["warm"], "the zygote is warm")
    took = []
    for n in range(8):
        pid = node.pid(f"m{n}")
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        node.wait_replaced(f"m{n}", pid)
        took.append(time.monotonic() - began)
    # 8 ms on a machine that does nothing else; the bench has the median beside a control.
    assert min(took) <= 0.020, took
    assert statistics.median(took) <= 0.060, took


def test_all_modules_killed_at_once_are_all_ready_within_300_ms(make_node):
    node = make_node([row("broker"), *(row(f"m{n}", needs=["broker"]) for n in range(8))]).start()
    wait_for(lambda: node.tree()["zygote"]["warm"], "the zygote is warm")
    pids = {name: each["pid"] for name, each in node.modules().items()}
    began = time.monotonic()
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    for name, pid in pids.items():
        node.wait_replaced(name, pid)
    assert time.monotonic() - began <= 0.3


def test_a_stopped_module_is_replaced_and_ready_within_one_and_a_half_seconds(make_node):
    node = make_node([row("broker"), row("m")]).start()
    began = time.monotonic()
    pid = node.kill("m", signal.SIGSTOP)
    found = node.wait_replaced("m", pid)
    assert time.monotonic() - began <= 1.5
    assert gone(pid)
    assert found["restarts"] == 1
    assert "hung: no beat" in node.ask("why", name="m")[0]["reason"]


def test_a_module_that_spins_leaves_its_stack_in_the_log(make_node):
    node = make_node([row("m")]).start()
    pid = node.pid("m")
    node.order("m", t="spin")
    node.wait_replaced("m", pid)
    assert any("in obey" in line for line in node.ask("logs", name="m", tail=50))
    assert any("in obey" in line for line in node.ask("why", name="m")[0]["log"])


def test_a_faster_heartbeat_of_the_configuration_is_what_counts(make_node):
    node = make_node([row("m")], modules={"m": {"heartbeat_ms": 60}})
    node.words("m", "beat=0.05")
    node.start()
    began = time.monotonic()
    pid = node.kill("m", signal.SIGSTOP)
    node.wait_replaced("m", pid)
    assert time.monotonic() - began <= 0.6


def test_a_supervisor_that_was_stopped_itself_blames_nobody(make_node):
    node = make_node([row("m"), row("n")]).start()
    before = {name: each["pid"] for name, each in node.modules().items()}
    assert node.process is not None
    os.kill(node.process.pid, signal.SIGSTOP)
    for pid in before.values():
        os.kill(pid, signal.SIGSTOP)  # the whole machine pauses
    time.sleep(2.0)
    for pid in (*before.values(), node.process.pid):
        os.kill(pid, signal.SIGCONT)
    time.sleep(1.5)
    assert {name: each["pid"] for name, each in node.modules().items()} == before


def test_a_crash_loop_is_named_backs_off_and_is_tried_for_ever(make_node):
    node = make_node([row("broker"), row("m")], policy={"loop_s": 0.3, "first_s": 0.01})
    node.words("m", "crash")
    node.start(ready=False)
    wait_for(lambda: node.module("m")["state"] == "crashlooping", "the crash loop is named")
    wait_for(
        lambda: (node.sample / "events").exists() and '"HealthChanged", "key": "m"' in node.read("events"), "health says so"
    )
    events = [json.loads(line) for line in node.read("events").splitlines()]
    assert [e["body"]["level"] for e in events if e["type"] == "HealthChanged" and e["key"] == "m"] == ["ERROR"]
    deaths = node.ask("why", name="m")
    assert deaths[0]["reason"] == "exit code 3"
    assert any("the last word of m" in line for line in deaths[0]["log"])
    restarts = node.module("m")["restarts"]
    wait_for(lambda: node.module("m")["restarts"] >= restarts + 2, "it is tried on and on")
    assert node.module("broker")["state"] == "ready"
    node.words("m")
    wait_for(lambda: node.module("m")["state"] == "ready", "it recovers when its fault is gone")


def test_a_module_whose_code_raises_is_explained_by_its_traceback(make_node):
    node = make_node([row("m", target="tests.unit.supervisor.samples:broken")])
    node.start(ready=False)
    wait_for(lambda: node.ask("why", name="m"), "it died")
    assert any("broken on purpose" in line for line in node.ask("why", name="m")[0]["log"])


def test_a_module_whose_code_cannot_be_imported_is_explained_and_costs_the_others_nothing(make_node):
    node = make_node([row("m", target="tests.unit.supervisor.nowhere:main"), row("n")])
    node.start(ready=False)
    wait_for(lambda: node.states().get("n") == "ready ", "the other is ready")
    wait_for(lambda: node.ask("why", name="m"), "it died")
    assert any("nowhere" in line for line in node.ask("why", name="m")[0]["log"])


def test_a_module_that_is_not_ready_in_time_is_ended_and_one_that_asks_for_more_time_is_not(make_node):
    node = make_node([row("late", start_timeout_s=0.5), row("slow", start_timeout_s=0.5)])
    node.words("late", "never-ready")
    node.words("slow", "slow")
    node.start(ready=False)
    wait_for(lambda: node.states().get("slow", "").startswith("ready"), "the one that asked is ready")
    assert node.module("slow")["restarts"] == 0
    wait_for(lambda: node.ask("why", name="late"), "the other one was ended")
    assert "not ready within" in node.ask("why", name="late")[0]["reason"]


def test_restart_with_restarts_the_followers_and_needs_alone_does_not(make_node):
    node = make_node([row("a"), row("b", restart_with=["a"]), row("c", needs=["a"])]).start()
    before = {name: each["pid"] for name, each in node.modules().items()}
    node.kill("a")
    node.wait_replaced("a", before["a"])
    node.wait_replaced("b", before["b"])
    assert node.pid("c") == before["c"]


def test_a_planned_restart_is_no_death_of_the_crash_window(make_node):
    node = make_node([row("m")]).start()
    for _ in range(8):
        pid = node.pid("m")
        node.ask("restart", name="m")
        node.wait_replaced("m", pid)
    assert node.module("m")["state"] == "ready"
    assert all(death["planned"] for death in node.ask("why", name="m"))


def test_a_stubborn_module_is_killed_in_a_planned_restart(make_node):
    node = make_node([row("m")])
    node.words("m", "stubborn")
    node.start()
    pid = node.pid("m")
    node.ask("restart", name="m")
    node.wait_replaced("m", pid)
    assert gone(pid)


def test_everybody_knows_the_new_process_before_it_starts(make_node):
    node = make_node([row("broker"), row("m")]).start()
    pid = node.kill("m")
    found = node.wait_replaced("m", pid)
    peers = json.loads(node.read("m.peers"))
    assert peers["m"] == [found["pid"], found["instance"]]
    assert peers["broker"][0] == node.pid("broker")


def test_the_broker_hears_every_state_and_a_new_broker_hears_them_again(make_node):
    node = make_node([row("broker"), row("m")]).start()

    def heard() -> set[tuple[str, str]]:
        lines = (node.sample / "events").read_text().splitlines() if (node.sample / "events").exists() else []
        events = [json.loads(line) for line in lines]
        assert all(set(e) == {"t", "type", "key", "body"} for e in events)
        return {(e["key"], e["body"]["state"]) for e in events if e["type"] == "ModuleStateChanged"}

    wait_for(lambda: ("m", "ready") in heard(), "the broker hears that m is ready")
    (node.sample / "events").unlink()
    pid = node.kill("broker")
    node.wait_replaced("broker", pid)
    wait_for(lambda: {("m", "ready"), ("broker", "ready")} <= heard(), "the new broker hears both")


def test_events_have_the_fields_that_the_protocol_names(make_node):
    import msgspec

    from piccolod.protocol.events import EVENTS

    node = make_node([row("broker"), row("m")], policy={"loop_s": 0.3, "first_s": 0.01})
    node.words("m", "crash")
    node.start(ready=False)
    wait_for(lambda: (node.sample / "events").exists() and "HealthChanged" in node.read("events"), "both kinds were said")
    for line in node.read("events").splitlines():
        event = json.loads(line)
        made = msgspec.convert(event["body"], EVENTS[event["type"]], strict=True)
        assert made.key() == event["key"]
        assert set(event["body"]) == set(EVENTS[event["type"]].__struct_fields__)


def test_documents_have_the_fields_that_the_protocol_names(make_node):
    import msgspec

    from services.api.documents import ModuleView

    node = make_node(THREE).start()
    for document in node.ask("modules"):
        made = msgspec.convert(document, ModuleView)
        assert made.rss_bytes > 1 << 20 and made.pid > 0 and made.uptime_s >= 0


def test_a_disabled_module_is_shown_and_not_started(make_node):
    node = make_node([row("m"), row("n", needs=["m"])], modules={"m": {"enabled": False}})
    node.start(ready=False)
    wait_for(lambda: "m is disabled" in node.states().get("n", ""), "who needs it says so")
    assert node.module("m")["state"] == "disabled"
    assert node.module("m")["pid"] == 0


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
    assert node.process is not None
    node.process.kill()
    node.process.wait()
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
    node.process.kill()
    node.process.wait()
    wait_for(lambda: all(gone(pid) for pid in everyone), f"nobody of {everyone} is left", timeout_s=0.5)


def test_a_supervisor_starts_at_once_after_another_was_killed(make_node):
    node = make_node(THREE).start()
    assert node.process is not None
    node.process.kill()
    node.process.wait()
    node.start()


def test_a_second_supervisor_is_refused_and_told_which_runs(make_node):
    node = make_node([row("m")]).start()
    assert node.process is not None
    first, pid = node.process, node.pid("m")
    node.start(refused=True)
    assert node.process.wait(5) == 1
    assert f"another piccolod (pid {first.pid}) runs on {node.paths.run}" in node.stderr()
    node.process = first
    assert node.pid("m") == pid


def test_what_a_dead_module_leaves_in_its_process_group_ends_with_it(make_node):
    node = make_node([row("m")])
    node.words("m", "grandchild")
    node.start()
    pid = node.pid("m")
    (grandchild,) = wait_for(lambda: children(pid), "it has a child")
    node.words("m")
    os.kill(pid, signal.SIGKILL)
    node.wait_replaced("m", pid)
    wait_for(lambda: gone(grandchild), "its child has ended too")


def test_a_child_in_a_session_of_its_own_outlives_its_module_and_is_reaped(make_node):
    node = make_node([row("m")])
    node.words("m", "hoard=1")
    node.start()
    pid = node.pid("m")
    (keeper,) = wait_for(lambda: [child for child in children(pid) if os.getsid(child) == child], "its child has a session")
    node.words("m")
    os.kill(pid, signal.SIGKILL)
    node.wait_replaced("m", pid)
    assert not gone(keeper)
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{keeper}").exists(), "the supervisor reaps a stranger")


def test_garbage_on_the_pair_harms_nobody(make_node):
    node = make_node([row("m"), row("n")])
    node.words("m", "garbage")
    node.start()
    before = node.pid("n")
    assert node.module("m")["state"] == "ready"
    assert node.pid("n") == before
    assert "bug" not in node.stderr()


def test_a_flood_of_messages_does_not_keep_the_others_from_being_heard(make_node):
    node = make_node([row("m"), row("n")]).start()
    before = node.pid("n")
    node.order("m", t="flood", count=50_000)
    began = time.monotonic()
    while time.monotonic() - began < 2.0:
        asked = time.monotonic()
        assert node.pid("n") == before
        assert time.monotonic() - asked < 0.5


def test_a_module_that_closes_its_pair_is_replaced(make_node):
    node = make_node([row("m")]).start()
    pid = node.pid("m")
    node.order("m", t="close-pair")
    node.wait_replaced("m", pid)
    wait_for(lambda: gone(pid), "the old process has ended")


def test_the_ledger_survives_the_supervisor(make_node):
    node = make_node([row("m")]).start()
    pid = node.kill("m")
    node.wait_replaced("m", pid)
    wait_for(lambda: node.paths.ledger.exists() and str(pid) in node.paths.ledger.read_text(), "the death is on disk")
    assert node.process is not None
    node.process.kill()
    node.process.wait()
    node.start()
    assert node.ask("why", name="m")[-1]["pid"] == pid


def test_an_unreadable_ledger_stops_nothing(make_node):
    node = make_node([row("m")])
    node.paths.run.mkdir()
    node.paths.ledger.write_text('{"deaths": [{"module": 7}, 3]}')
    node.start()


def test_the_supervisor_is_small_and_idle_costs_next_to_nothing(make_node):
    node = make_node([row("broker"), *(row(f"m{n}", needs=["broker"]) for n in range(8))]).start()
    assert node.process is not None
    pid = node.process.pid
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    pss_kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss_kib <= 15 * 1024
    before, began = _cpu_s(pid), time.monotonic()
    time.sleep(3.0)
    assert (_cpu_s(pid) - before) / (time.monotonic() - began) <= 0.02  # these samples beat at 10/s, real modules at 4/s


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_module_that_dies_while_no_descriptor_is_left_comes_back_once_there_is_one(make_node):
    node = make_node([row("m")]).start()
    assert node.process is not None
    pid = node.pid("m")
    before = resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: "no process can be made" in node.stderr(), "the supervisor says so")
    finally:
        resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, before)
    node.wait_replaced("m", pid)

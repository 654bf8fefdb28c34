"""Processes: started in order, told of each other, watched; and what a supervisor leaves to the next one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from piccolod.protocol.events import EVENTS
from services.api.documents import ModuleView
from tests.unit.supervisor.conftest import THREE, row, wait_for


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


def test_the_broker_hears_every_state_and_a_new_broker_hears_them_again(make_node):
    node = make_node([row("broker"), row("m")]).start()

    def heard() -> set[tuple[str, str]]:
        events = node.events()
        assert all(set(e) == {"t", "type", "key", "body"} for e in events)
        return {(e["key"], e["body"]["state"]) for e in events if e["type"] == "ModuleStateChanged"}

    wait_for(lambda: ("m", "ready") in heard(), "the broker hears that m is ready")
    (node.sample / "events").unlink()
    pid = node.kill("broker")
    node.wait_replaced("broker", pid)
    wait_for(lambda: {("m", "ready"), ("broker", "ready")} <= heard(), "the new broker hears both")


def test_events_have_the_fields_that_the_protocol_names(make_node):
    node = make_node([row("broker"), row("m")], policy={"loop_s": 0.3, "first_s": 0.01})
    node.words("m", "crash")
    node.start(ready=False)
    wait_for(lambda: "HealthChanged" in {event["type"] for event in node.events()}, "both kinds were said")
    for event in node.events():
        made = msgspec.convert(event["body"], EVENTS[event["type"]], strict=True)
        assert made.key() == event["key"]
        assert set(event["body"]) == set(EVENTS[event["type"]].__struct_fields__)


def test_documents_have_the_fields_that_the_protocol_names(make_node):
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


def test_a_supervisor_starts_at_once_after_another_was_killed(make_node):
    node = make_node(THREE).start()
    node.die()
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


def test_the_ledger_survives_the_supervisor(make_node):
    node = make_node([row("m")]).start()
    pid = node.kill("m")
    node.wait_replaced("m", pid)
    wait_for(lambda: node.paths.ledger.exists() and str(pid) in node.paths.ledger.read_text(), "the death is on disk")
    node.die()
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

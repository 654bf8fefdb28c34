"""Apps follow leadership and traffic follows apps: any node answers for an app, and another one runs it when its node dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from piccolod import clock
from tests.bed import faults
from tests.bed.apps import answers, could_lead, home, installed, led_there, runs
from tests.bed.cluster import Cluster
from tests.bed.forming import asked, said, unlock, wait_leader
from tests.bed.machine import Machine
from tests.bed.oracle import Oracle
from tests.node import until
from tests.poller import Poller

pytestmark = pytest.mark.timeout(300)

VOLUME = "storage: {persistent: {data: {container: /data, size_limit: 16MiB}}}\n"


@pytest.fixture(scope="module")
def bed(formed: Callable[[int], Cluster]) -> Cluster:
    made = formed(3)
    made.load_demo_image()
    return made


@pytest.fixture(autouse=True)
def whole_again(bed: Cluster) -> Iterator[None]:
    """Whatever a test did, and wherever it failed, the next one finds three unlocked nodes without an app."""
    yield
    for machine in bed.machines:
        if not machine.is_on:
            faults.power_on(machine, within_s=60)
            unlock(machine)
    leading = wait_leader(bed)
    for machine in bed.machines:
        said(leading, "nodes", "undrain", machine.name)
    for app in leading.get("/apps"):
        said(leading, "apps", "uninstall", app["name"], "-y", "--purge")
    until(lambda: not any(machine.podman("ps", "--quiet").strip() for machine in bed.machines), "nothing of them is left", 30)


@pytest.fixture
def hello(bed: Cluster) -> int:
    """The public port of an app that runs on one node and could run on the others."""
    return installed(bed, "hello")


def test_any_node_answers_for_an_app_that_one_node_runs(bed: Cluster, hello: int) -> None:
    leading = home(bed, "hello")
    assert [runs(machine, "hello") for machine in bed.machines] == [machine is leading for machine in bed.machines]
    for machine in bed.machines:
        assert machine.fetch(hello).status == 200
        if machine is not leading:
            assert leading is not None
            until(lambda machine=machine: machine.app("hello")["state"] == "running", "it knows how it is there", 5)  # type: ignore[misc]
            shown = machine.app("hello")
            assert (shown["leader"]["node"], shown["nodes"][machine.name]["state"]) == (leading.name, "standby")


def test_an_app_serves_from_another_node_when_the_machine_of_its_leader_is_lost(bed: Cluster, hello: int) -> None:
    lost = home(bed, "hello")
    assert lost is not None
    others = [machine for machine in bed.machines if machine is not lost]
    epoch = lost.get("/leadership/app:hello")["epoch"]
    lost_at = clock.now()
    faults.power_off(lost)
    for machine in others:
        led_there(machine, "hello", hello, f"{machine.name} answers again", 15)
    outage_s = clock.now() - lost_at
    heir = home(bed, "hello")
    assert heir in others
    shown = heir.get("/leadership/app:hello")
    assert (shown["epoch"], shown["reason"]) == (epoch + 1, "expired")
    phases = until(lambda: told(heir, "hello"), "it tells how long each phase took", 10, 0.1)
    assert {"detected", "claimed", "started", "ready", "routed"} <= set(phases), phases
    # `detected` counts from the last heartbeat, which is up to one of them before the loss.
    assert sum(phases.values()) == pytest.approx(outage_s * 1000, abs=1500)
    assert [runs(machine, "hello") for machine in others] == [machine is heir for machine in others]
    faults.power_on(lost, within_s=60)
    unlock(lost)
    led_there(lost, "hello", hello, "who is back leads to it")
    until(lambda: lost.app("hello")["nodes"][lost.name]["state"] == "standby", "and stands by", 20)
    assert not runs(lost, "hello")
    assert home(bed, "hello") is heir, "it does not go back by itself"


def told(machine: Machine, name: str) -> dict[str, float]:
    """The phases of the last change, once all of them are known."""
    phases: dict[str, float] = machine.get(f"/leadership/app:{name}/why")["history"][0]["phases"]
    return phases if "routed" in phases else {}


def test_an_app_is_moved_as_planned_by_any_node(bed: Cluster, hello: int) -> None:
    before = home(bed, "hello")
    assert before is not None
    to, by = (machine for machine in bed.machines if machine is not before)
    epoch = before.get("/leadership/app:hello")["epoch"]
    until(lambda: could_lead(to, before, "hello"), f"{to.name} could lead it", 20)
    moved = by.ctl("apps", "move", "hello", "--to", to.name, timeout_s=60)
    assert moved.returncode == 0 and f"hello runs on {to.name}; its clients waited" in moved.stderr, moved
    assert home(bed, "hello") is to
    shown = to.get("/leadership/app:hello")
    assert (shown["epoch"], shown["reason"]) == (epoch + 1, "switchover")
    phases = until(lambda: told(to, "hello"), "it tells how long each phase took", 10, 0.1)
    assert list(phases) == ["closing", "claimed", "started", "ready", "routed"]
    for machine in bed.machines:
        led_there(machine, "hello", hello, f"{machine.name} answers")
    assert [runs(machine, "hello") for machine in bed.machines] == [machine is to for machine in bed.machines]


def test_at_no_time_do_two_nodes_run_it(bed: Cluster) -> None:
    with Oracle(bed) as oracle:
        installed(bed, "actor", oracle.app_command("app:actor"), serves=False)
        for _ in range(2):
            acting = home(bed, "actor")
            assert acting is not None
            others = [machine for machine in bed.machines if machine is not acting]
            until(lambda acting=acting: stamped(oracle, acting), "it acts", 20)  # type: ignore[misc]
            to = others[-1]
            until(lambda to=to, acting=acting: could_lead(to, acting, "actor"), f"{to.name} could lead it", 20)  # type: ignore[misc]
            said(others[0], "leaders", "switchover", "actor", "--to", to.name)
            until(lambda to=to: stamped(oracle, to), "it acts where it was moved", 20)  # type: ignore[misc]
        lost = home(bed, "actor")
        assert lost is not None
        faults.power_off(lost)
        until(lambda: any(stamped(oracle, machine) for machine in bed.machines if machine is not lost), "another acts", 20)
        faults.power_on(lost, within_s=60)
        unlock(lost)
        oracle.check()


def stamped(oracle: Oracle, machine: Machine) -> bool:
    """Whether the last one that acted was there."""
    stamps = oracle.stamps("app:actor")
    return bool(stamps) and stamps[-1].node == machine.name


def test_apps_of_a_lost_node_are_spread_over_the_others(bed: Cluster) -> None:
    leading = wait_leader(bed)
    names = [f"many{number}" for number in range(6)]
    ports = {name: installed(bed, name) for name in names}
    counts = [sum(home(bed, name) is machine for name in names) for machine in bed.machines]
    lost = max(bed.machines, key=lambda machine: sum(home(bed, name) is machine for name in names))
    faults.power_off(lost)
    others = [machine for machine in bed.machines if machine is not lost]
    for name in names:
        for machine in others:
            led_there(machine, name, ports[name], f"{machine.name} answers for {name}")
    after = [sum(home(bed, name) is machine for name in names) for machine in others]
    told = [str(change) for change in others[0].get("/leadership/history?limit=12")]
    assert max(after) - min(after) <= 1, "\n".join([f"{leading.name} {counts} {after}", *told])


def test_an_app_goes_where_its_manifest_says(bed: Cluster) -> None:
    leading = wait_leader(bed)
    others = [machine for machine in bed.machines if machine is not leading]
    best, next_best = others
    cluster = f"cluster: {{prefer: [{best.name}, {next_best.name}]}}\n"
    port = installed(bed, "picky", cluster)
    assert home(bed, "picky") is best
    faults.power_off(best)
    until(lambda: home(bed, "picky") is next_best, "the next best leads it", 15)
    faults.power_on(best, within_s=60)
    unlock(best)
    until(lambda: could_lead(best, leading, "picky"), f"{best.name} could lead it", 20)
    leading = wait_leader(bed)
    changed = leading.demo_manifest("picky", f"cluster: {{prefer: [{best.name}], never: [{next_best.name}]}}\n")
    reply = leading.api("PUT", "/apps/picky", changed, kind="application/yaml")
    assert reply.status in (200, 202), reply
    until(lambda: home(bed, "picky") is best, "it leaves where it may never run", 20)
    led_there(next_best, "picky", port, "which leads to it")
    assert not runs(next_best, "picky")
    assert f"never on {next_best.name}" in said(leading, "leaders", "show", "picky")


def test_an_app_with_data_stays_with_it_and_says_so(bed: Cluster) -> None:
    port = installed(bed, "diary", VOLUME)
    lost = home(bed, "diary")
    assert lost is not None
    other = next(machine for machine in bed.machines if machine is not lost)
    faults.power_off(lost)
    until(lambda: not asked(other, "GET", "/leadership/app:diary").json["node"], "its term has ended", 15)
    until(
        lambda: "its data is there alone" in other.app("diary")["reason"] or "at home on" in other.app("diary")["reason"],
        "it says why",
        15,
    )
    assert not runs(other, "diary")
    faults.power_on(lost, within_s=60)
    unlock(lost)
    led_there(other, "diary", port, "it serves again", 30)
    assert home(bed, "diary") is lost


def test_a_drained_node_gives_away_what_others_can_lead_and_is_off_without_anybody_noticing(bed: Cluster) -> None:
    leading = wait_leader(bed)
    ports = {name: installed(bed, name, f"cluster: {{prefer: [{leading.name}]}}\n") for name in ("one", "two")}
    assert home(bed, "one") is home(bed, "two") is leading
    installed(bed, "ledger", VOLUME)
    assert home(bed, "ledger") is leading
    by, other = (machine for machine in bed.machines if machine is not leading)
    for name in ports:
        until(lambda name=name: could_lead(by, leading, name), f"{by.name} could lead {name}", 20)  # type: ignore[misc]
    refused = by.ctl("nodes", "drain", leading.name, timeout_s=120)
    assert refused.returncode == 1, refused
    assert "app:ledger stays" in refused.stderr and f"data is on {leading.name}" in refused.stderr
    said(wait_leader(bed), "apps", "uninstall", "ledger", "-y", "--purge")
    drained = by.ctl("nodes", "drain", leading.name, timeout_s=120)
    assert drained.returncode == 0 and "can be switched off" in drained.stderr, drained
    assert leading not in (home(bed, "one"), home(bed, "two"), wait_leader(bed))
    with Poller(ports["one"], host=by.address) as client:
        until(lambda: len(client.answers) > 20, "the client is served")
        faults.power_off(leading)
        seen = len(client.answers)
        until(lambda: len(client.answers) > seen + 100, "the client goes on")
    assert client.failures() == []
    faults.power_on(leading, within_s=60)
    unlock(leading)
    assert f"{leading.name} is drained" in said(other, "cluster", "list", "-o", "wide")
    assert not could_lead(leading, by, "one")
    said(leading, "nodes", "undrain", leading.name)
    until(lambda: could_lead(leading, by, "one"), "it may take over again", 20)


def test_a_client_sees_one_pause_and_no_refusal_from_the_nodes_that_live(bed: Cluster, hello: int) -> None:
    lost = home(bed, "hello")
    assert lost is not None
    through = next(machine for machine in bed.machines if machine is not lost)
    with Poller(hello, host=through.address) as client:
        until(lambda: len(client.answers) > 20, "the client is served")
        faults.power_off(lost)
        until(lambda: answers(through, hello), "it answers again", 15)
        seen = len(client.answers)
        until(lambda: len(client.answers) > seen + 20, "the client goes on")
    assert len(client.failures()) <= 1, "of all requests the one that was under way"

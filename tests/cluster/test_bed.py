"""The bed keeps its word: machines apart, faults that do what they say and are taken back, exact power loss, no trace.

The machines are lone nodes, each its own leader: two of them that run one app are the double actor that the oracle must see.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.bed import audit, etcd, faults, remains
from tests.bed.cgroups import state
from tests.bed.cluster import Cluster
from tests.bed.etcd import Etcd
from tests.bed.machine import Machine
from tests.bed.oracle import Oracle, Stamp, violations
from tests.bed.storm import Acknowledged
from tests.node import ROOT, Node, until

APP_PORT = 35000
DATA_APP = (
    "storage: {persistent: {data: {container: /data, size_limit: 64MiB}}}\n"
    'command: [/bin/sh, -c, "echo started | busybox dd of=/data/log oflag=append conv=notrunc,fsync; exec busybox httpd -f -p 80 -h /data"]\n'
)


DYING_BED = """
import signal
from tests.bed import faults
from tests.bed.cluster import Cluster
bed = Cluster(1)
bed["n1"].boot()
faults.partition(bed, ["n1"], ["client"])
faults.freeze_disk(bed["n1"])
faults.freeze(bed["n1"])
print(bed.tag, "up", flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
def bare(cluster: Callable[[int], Cluster]) -> Cluster:
    """Three machines without piccolod: each serves files at APP_PORT, started again at each power on."""
    bed = cluster(3)
    for machine in bed.machines:
        boot_bare(machine)
    return bed


@pytest.fixture(scope="module")
def three(cluster: Callable[[int], Cluster]) -> Cluster:
    bed = cluster(3)
    bed.start()
    bed.load_demo_image()
    bed.unlock()
    bed.on_each(lambda machine: machine.install(machine.demo_manifest("hello", DATA_APP)))
    for machine in bed.machines:
        machine.disk.sync(machine.mount)
    return bed


@pytest.fixture(autouse=True)
def _whole_again(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"bare", "three"} & set(request.fixturenames):
        bed: Cluster = request.getfixturevalue(name)
        faults.heal(bed)
        for machine in bed.machines:
            faults.thaw(machine)
            faults.thaw_disk(machine)
            until(partial(client_reaches, bed, machine), f"{machine.name} serves", 30)
            if name == "three":
                until(machine.all_ready, f"every module of {machine.name} ready after the fault", 60)


def boot_bare(machine: Machine) -> None:
    machine.boot()
    machine.here(machine.state_dir).mkdir(exist_ok=True)
    machine.spawn("busybox", "httpd", "-f", "-p", str(APP_PORT), "-h", str(machine.state_dir))
    until(lambda: answers([], machine, APP_PORT), f"{machine.name} serves")


def answers(whence: list[str], target: Machine, port: int, path: str = "/") -> bool:
    """Whether `target` answers HTTP to somebody who is entered by `whence`; any status is an answer."""
    url = f"http://{target.address}:{port}{path}"
    return subprocess.run([*whence, "curl", "-s", "-o", "/dev/null", "-m", "0.5", url], check=False).returncode == 0


def reaches(source: Machine, target: Machine, port: int = APP_PORT) -> bool:
    return answers(source.inside(), target, port)


def client_reaches(bed: Cluster, target: Machine) -> bool:
    return answers(bed.network.inside("client"), target, APP_PORT)


def test_three_machines_serve_an_app_each_to_the_host_the_client_and_each_other(three: Cluster) -> None:
    for machine in three.machines:
        assert machine.fetch(APP_PORT, "/log").body == b"started\n"
        assert client_reaches(three, machine)
        assert all(reaches(other, machine) for other in three.machines)
        assert machine.get("/status")["node"] == machine.name


def test_machines_share_no_process_no_mount_no_boot_and_no_container(three: Cluster) -> None:
    n1, n2, _ = three.machines
    assert not set(n1.members().values()) & set(n2.members().values())
    boots = {boot_id(machine) for machine in three.machines}
    assert len(boots | {Path("/proc/sys/kernel/random/boot_id").read_text()}) == 4
    assert str(n2.state_dir) not in n1.here(Path("/proc/1/mounts")).read_text()
    assert [machine.podman("ps", "--quiet").count("\n") for machine in three.machines] == [1, 1, 1]


def test_a_killed_and_a_frozen_module_are_replaced(three: Cluster) -> None:
    for fault in (faults.kill, faults.freeze):
        instance = three["n1"].instance("persistence")
        fault(three["n1"], "persistence")
        until(lambda instance=instance: three["n1"].is_replaced("persistence", instance), "persistence replaced")


def test_the_host_keeps_its_hardware_address_when_machines_go_and_come(bare: Cluster) -> None:
    def address() -> str:
        shown = ["ip", "-j", "link", "show", bare.network.bridge]
        return str(json.loads(subprocess.run(shown, capture_output=True, check=True).stdout)[0]["address"])

    seen = set()
    for machine in bare.machines:
        seen.add(address())
        faults.power_off(machine)
        seen.add(address())
        boot_bare(machine)
    assert len(seen) == 1, seen


def test_a_fault_hits_containers_and_programs_by_name(three: Cluster) -> None:
    n1 = three["n1"]
    until(lambda: n1.named("gocryptfs"), "the volume's process")
    faults.freeze(n1, "app:hello")
    assert not client_reaches(three, n1)
    faults.thaw(n1, "app:hello")
    assert client_reaches(three, n1)
    faults.kill(n1, "app:hello")
    until(
        lambda: n1.fetch(APP_PORT, "/log").body.count(b"started") == 2 if client_reaches(three, n1) else False, "started again"
    )
    with pytest.raises(AssertionError, match="runs no etcd"):
        faults.kill(n1, "etcd")


def test_a_frozen_machine_answers_nobody_and_goes_on_where_it_was(bare: Cluster) -> None:
    n1, n2, _ = bare.machines
    pids = n1.members()
    faults.freeze(n1)
    try:
        assert not client_reaches(bare, n1)
        assert not reaches(n2, n1)
        assert reaches(n2, bare["n3"])
    finally:
        faults.thaw(n1)
    until(lambda: client_reaches(bare, n1), "n1 serves again")
    assert pids[1] == n1.members()[1]


def test_a_partition_parts_two_machines_and_nobody_else(bare: Cluster) -> None:
    n1, n2, n3 = bare.machines
    faults.partition(bare, ["n1"], ["n2"])
    assert not reaches(n1, n2)
    assert not reaches(n2, n1)
    assert reaches(n1, n3)
    assert reaches(n3, n2)
    assert client_reaches(bare, n1)
    faults.heal(bare)
    assert reaches(n1, n2)


def test_a_partition_one_way_lets_the_other_way_pass(bare: Cluster) -> None:
    n1, n2, _ = bare.machines
    assert datagram_arrives(n1, n2)
    faults.partition(bare, ["n1"], ["n2"], one_way=True)
    assert not datagram_arrives(n1, n2)
    assert datagram_arrives(n2, n1)


def test_a_partition_of_a_port_leaves_the_others(bare: Cluster) -> None:
    n1, n2, _ = bare.machines
    n2.spawn("busybox", "httpd", "-f", "-p", "2379", "-h", "/")
    until(lambda: reaches(n1, n2, 2379), "a second port")
    faults.partition(bare, ["n1"], ["n2"], ports=faults.ETCD_PORTS)
    assert not reaches(n1, n2, 2379)
    assert reaches(n1, n2)
    faults.heal(bare)
    assert reaches(n1, n2, 2379)
    faults.kill(n2, "busybox")
    n2.spawn("busybox", "httpd", "-f", "-p", str(APP_PORT), "-h", str(n2.state_dir))


def test_power_loss_is_at_once_and_loses_what_was_not_synced_and_nothing_else(bare: Cluster) -> None:
    n1, n2, _ = bare.machines
    pids, boot = list(n1.members().values()), boot_id(n1)
    (n1.state / "synced").write_text("on the disk")
    n1.here(Path("/run/left-behind")).touch()
    n1.disk.sync(n1.mount)
    (n1.state / "unsynced").write_text("never on the disk")
    faults.power_off(n1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not n1.state.exists()
    assert not reaches(n2, n1)
    boot_bare(n1)
    assert (n1.state / "synced").read_text() == "on the disk"
    assert not (n1.state / "unsynced").exists()
    assert not n1.here(Path("/run/left-behind")).exists()
    assert boot_id(n1) != boot
    assert reaches(n2, n1)


def test_a_machine_can_lose_power_while_it_and_its_disk_stand_still(bare: Cluster) -> None:
    n1 = bare["n1"]
    faults.freeze_disk(n1)
    n1.spawn("sh", "-c", f"echo x >{n1.state_dir}/waits")
    until(lambda: "D" in [state(Path(f"/proc/{pid}")) for pid in n1.cgroups.members()], "the write waits for the disk")
    faults.freeze(n1)
    faults.power_off(n1)
    boot_bare(n1)
    assert not (n1.state / "waits").exists()


def test_writes_wait_for_a_frozen_disk_and_a_full_one_refuses_them(bare: Cluster) -> None:
    n1 = bare["n1"]
    faults.freeze_disk(n1)
    writer = subprocess.Popen(n1.inside("sh", "-c", f"echo x >{n1.state_dir}/written"))
    with pytest.raises(subprocess.TimeoutExpired):
        writer.wait(0.5)
    faults.thaw_disk(n1)
    assert writer.wait(5) == 0
    faults.fill_disk(n1)
    with pytest.raises(OSError, match="No space left"):
        (n1.state / "more").write_bytes(bytes(1 << 20))
    faults.empty_disk(n1)
    (n1.state / "more").write_bytes(bytes(1 << 20))


def test_a_client_alone_can_be_cut_off(bare: Cluster) -> None:
    n1, n2, _ = bare.machines
    faults.partition(bare, ["client"], ["n1", "n2", "n3"])
    assert not client_reaches(bare, n1)
    assert reaches(n2, n1)


def test_after_a_loss_of_power_a_machine_is_locked_and_its_app_comes_back_with_its_data(three: Cluster) -> None:
    n1 = three["n1"]
    started = n1.fetch(APP_PORT, "/log").body
    n1.disk.sync(n1.mount)
    faults.power_off(n1)
    assert not client_reaches(three, n1)
    faults.power_on(n1, within_s=60)
    assert n1.get("/crypto/status")["locked"] is True
    n1.unlock()
    until(lambda: client_reaches(three, n1), "the app serves", 30)
    assert n1.fetch(APP_PORT, "/log").body == started + b"started\n"


def test_a_commit_waits_for_a_frozen_disk_and_is_acknowledged_after_it_thaws(three: Cluster) -> None:
    n1 = three["n1"]
    rev = n1.get("/store/revision")["rev"]
    faults.freeze_disk(n1)
    try:
        with pytest.raises((TimeoutError, AssertionError)):
            assert n1.api("PUT", "/settings", {"title": "frozen"}, timeout_s=1.0).status == 200
        assert client_reaches(three, three["n2"])
    finally:
        faults.thaw_disk(n1)
    until(lambda: _commits(n1), "a commit after the thaw", 20)
    assert n1.get("/store/revision")["rev"] > rev


def test_two_actors_of_one_resource_are_seen_and_one_alone_is_well_even_when_cut_off(three: Cluster) -> None:
    n1, n2, _ = three.machines
    with Oracle(three) as oracle:
        n1.install(n1.demo_manifest("actor", oracle.app_command("app:actor")))
        host, port = oracle.address
        holder = n1.spawn(sys.executable, "-m", "tests.bed.gate_holder", str(n1.run_dir / "page"), "kernel", host, str(port))
        until(lambda: len(oracle.stamps("app:actor")) > 20 and len(oracle.stamps("kernel")) > 20, "both act")
        assert {stamp.node for stamp in oracle.stamps()} == {"n1"}
        assert all(stamp.epoch >= 1 for stamp in oracle.stamps("kernel"))
        faults.partition(three, ["n1"], ["n2", "n3", "client"])
        seen = len(oracle.stamps("app:actor"))
        until(lambda: len(oracle.stamps("app:actor")) > seen + 20, "heard although it is cut off")
        oracle.check()
        n2.install(n2.demo_manifest("actor", oracle.app_command("app:actor")))
        until(lambda: "n2" in {stamp.node for stamp in oracle.stamps("app:actor")}, "n2 acts too")
        with pytest.raises(AssertionError, match=r"at the same time: app:actor on n1.* \| app:actor on n2"):
            until(lambda: oracle.check(), "an overlap", 5)
        assert oracle.file.read_text().count("\n") >= seen
        holder.kill()
        for machine in (n1, n2):
            assert machine.api("DELETE", "/apps/actor").status in (200, 204)


def test_the_oracle_counts_overlaps_of_one_resource_only() -> None:
    def acts(resource: str, epoch: int, node: str, *times: float) -> list[Stamp]:
        return [Stamp(resource, epoch, node, f"{node}-{epoch}", at) for at in times]

    assert violations(acts("a", 1, "n1", 1.0, 2.0) + acts("a", 2, "n2", 2.1, 3.0)) == []
    assert violations(acts("a", 1, "n1", 1.0, 2.0) + acts("b", 2, "n2", 1.5, 3.0)) == []
    assert len(violations(acts("a", 1, "n1", 1.0, 5.0) + acts("a", 2, "n2", 2.1, 3.0) + acts("a", 3, "n3", 4.0))) == 2
    assert "a lower epoch later" in violations(acts("a", 2, "n1", 1.0, 2.0) + acts("a", 1, "n2", 2.1, 3.0))[0]


def test_the_audit_finds_what_was_lost_doubled_invented_or_differs() -> None:
    def acknowledged(*writes: tuple[str, int]) -> list[Acknowledged]:
        return [Acknowledged(title, rev, 0.0) for title, rev in writes]

    log = {1: ("a", ""), 2: ("b", "storm-0-1"), 3: ("c", "storm-0-2")}
    told, tried = acknowledged(("storm-0-1", 2), ("storm-0-2", 3)), {"storm-0-1", "storm-0-2"}
    assert audit.judge({"n1": log, "n2": {1: ("a", "")}}, told, tried) == []
    assert "lost: 'storm-0-3' at rev 4" in audit.judge({"n1": log}, acknowledged(("storm-0-3", 4)), tried)[0]
    assert "another rev 3" in audit.judge({"n1": log, "n2": {**log, 3: ("x", "storm-0-2")}}, told, tried)[0]
    assert "written 2 times" in audit.judge({"n1": {**log, 4: ("d", "storm-0-1")}}, told, tried)[0]
    assert "nobody asked for 'storm-0-2'" in audit.judge({"n1": log}, told, {"storm-0-1"})[0]
    assert audit.judge({"n1": {1: log[1], 3: log[3]}}, told[1:], tried) == ["no member has rev 2"]


def test_a_real_etcd_elects_and_survives_the_partition_of_its_leader(bare: Cluster) -> None:
    ensemble = Etcd(bare)
    ensemble.start()
    try:
        leader = ensemble.wait_leader()
        others = [machine for machine in bare.machines if machine is not leader]
        assert etcd.put(leader, "before", "1")
        faults.partition(bare, [leader.name], [machine.name for machine in others], ports=faults.ETCD_PORTS)
        until(lambda: ensemble.leader(*others) in others, "another leader, named by both", 15)
        assert not etcd.put(leader, "lost", "1")
        assert etcd.put(others[0], "after", "2")
        assert etcd.get(others[1], "before") == "1"
        faults.heal(bare)
        until(lambda: etcd.get(leader, "after") == "2", "the old leader has what it missed")
        assert etcd.get(leader, "lost") is None
    finally:
        ensemble.stop()


def test_nothing_is_left_of_a_bed_whose_test_fails_in_the_middle() -> None:
    tag = ""
    with pytest.raises(RuntimeError, match="in the middle"):
        with Cluster(2) as bed:
            tag = bed.tag
            bed["n1"].boot()
            faults.partition(bed, ["n1"], ["n2"])
            faults.freeze_disk(bed["n1"])
            faults.freeze(bed["n1"])
            assert any("rules" in trace for trace in remains.traces(tag))
            raise RuntimeError("in the middle")
    assert remains.traces(tag) == []


def test_a_bed_for_people_serves_until_ctrl_c_and_leaves_nothing() -> None:
    with _said("-m", "tests.bed", "--nodes", "1", until="Ctrl-C ends") as (person, said):
        host, port = said.split("http://")[1].split()[0].split(":")
        with socket.create_connection((host, int(port)), timeout=2):
            pass
        tag = (Path(said.split("its log:")[1].split()[0]).parents[1] / "tag").read_text()
        person.send_signal(signal.SIGINT)
        assert person.wait(20) == 0
        assert remains.traces(tag) == []


def test_a_bed_that_died_with_a_frozen_disk_is_cleaned_and_one_that_lives_is_not(bare: Cluster) -> None:
    with _said("-c", DYING_BED, until="up") as (bed, said):
        tag = said.split()[0]
        bed.kill()
        bed.wait(10)
        assert remains.traces(tag)
        assert any(tag in line for line in remains.clean())
        assert remains.traces(tag) == []
    assert remains.traces(bare.tag)
    assert client_reaches(bare, bare["n1"])


def _commits(node: Node) -> bool:
    with suppress(TimeoutError):
        return node.api("PUT", "/settings", {"title": str(time.monotonic())}, timeout_s=2.0).status == 200
    return False


def boot_id(machine: Machine) -> str:
    return machine.here(Path("/proc/sys/kernel/random/boot_id")).read_text()


def datagram_arrives(source: Machine, target: Machine) -> bool:
    listen = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 7777)); s.settimeout(1)\n"
        "print('listening', flush=True); s.recv(9)"
    )
    listener = subprocess.Popen(target.inside(sys.executable, "-c", listen), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == b"listening\n"
        send = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{target.address}', 7777))"
        subprocess.run(source.inside(sys.executable, "-c", send), check=True)
        return listener.wait(5) == 0


@contextmanager
def _said(*arguments: str, until: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python of its own, and what it said down to the line with `until`."""
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said = ""
            while until not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            yield process, said
        finally:
            process.kill()

"""etcd under the supervisor: started where a file says so, killed when it makes no progress, gone with the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod import etcd_conf
from piccolod.errors import StoreUnavailable
from piccolod.etcd_conf import Settings
from piccolod.paths import Paths
from piccolod.supervisor.etcd import Etcd
from piccolod.supervisor.loop import Loop
from piccolod.supervisor.reaper import Reaper
from services.consensus.etcd import lease, status
from services.consensus.etcd.client import Client
from services.consensus.etcd.failures import TransactionUnknown
from services.consensus.etcd.transaction import Put, Range, Transaction, created
from tests.etcd import Member
from tests.node import free_port
from tests.unit.supervisor.conftest import TestNode, gone, row, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("etcd"), reason="needs root and etcd"),
]


def settings(**more: object) -> Settings:
    urls = {name: f"http://127.0.0.1:{free_port()}" for name in ("peer_url", "client_url")}
    return Settings(name="n1", token="test", **urls, **more)


def has_member(paths: Paths, wanted: Settings) -> None:
    paths.cluster.mkdir(parents=True, exist_ok=True)
    etcd_conf.write(wanted, paths.etcd_conf)


@pytest.fixture
def node(make_node) -> TestNode:
    """Its etcd is a cluster of one."""
    made = make_node([row("broker"), row("m")])
    has_member(made.paths, settings())
    return made


def ctl(node: TestNode, *words: str) -> str:
    wanted = etcd_conf.read(node.paths.etcd_conf)
    assert wanted is not None
    return Member(node.folder / "client", wanted).ctl(*words)


def told(node: TestNode, level: str, word: str) -> list[str]:
    """The supervisor's HealthChanged of etcd, as the broker got them."""
    with contextlib.suppress(FileNotFoundError):
        events = [json.loads(line) for line in node.read("events").splitlines()]
        bodies = [each["body"] for each in events if each["type"] == "HealthChanged" and each["key"] == "etcd"]
        return [body["reason"] for body in bodies if body["level"] == level and word in body["reason"]]
    return []


def test_a_node_without_the_file_has_no_etcd(make_node):
    node = make_node([row("broker")]).start()
    assert "etcd" not in node.modules()
    assert not node.paths.etcd_data.exists()


def test_it_runs_answers_clients_and_has_no_rights(node):
    node.start()
    pid = node.pid("etcd")
    assert "OK" in ctl(node, "put", "/a", "1")
    status = Path(f"/proc/{pid}/status").read_text()
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"):
        assert line in status
    assert node.module("etcd")["level"] == "OK"
    assert any("3.4" in line or "etcd-version" in line for line in node.ask("logs", name="etcd", tail=200))


def test_kill_9_is_answered_with_a_new_one_that_has_the_data(node):
    node.start()
    ctl(node, "put", "/a", "kept")
    pid = node.kill("etcd")
    assert node.wait_replaced("etcd", pid)["restarts"] == 1
    assert "kept" in ctl(node, "get", "/a")


def test_its_death_holds_up_nobody_else(make_node):
    """The supervisor, in real time, once span for a second while it reaped a process whose threads it had looked at."""
    node = make_node([row("broker"), row("m")], modules={"m": {"heartbeat_ms": 100}})
    has_member(node.paths, settings())
    node.start()
    for _ in range(5):
        m, pid = node.module("m"), node.pid("etcd")
        time.sleep(0.6)  # for two looks at its threads
        os.kill(pid, signal.SIGKILL)
        node.wait_replaced("etcd", pid)
        assert node.module("m")["instance"] == m["instance"]
    assert "starved" not in "".join(node.ask("logs", name="supervisor", tail=200))


def test_a_stopped_one_is_replaced(node):
    node.start()
    began = time.monotonic()
    pid = node.kill("etcd", signal.SIGSTOP)
    wait_for(lambda: gone(pid), "it is killed", 1.0)
    node.wait_replaced("etcd", pid)
    assert time.monotonic() - began < 4
    assert told(node, "ERROR", "hung: the process is stopped")


def test_one_that_accepts_and_never_answers_is_replaced(node):
    """Something else listens where its health socket was: connections are taken, and that is all."""
    node.start()
    pid = node.pid("etcd")
    with socket.socket(socket.AF_UNIX) as silent:
        node.paths.etcd_health.unlink()
        silent.bind(str(node.paths.etcd_health))
        silent.listen(64)
        wait_for(lambda: gone(pid), "it is killed", 5)
    node.wait_replaced("etcd", pid)
    assert told(node, "ERROR", "no answer on its health socket")


def test_it_dies_with_the_supervisor(node):
    node.start()
    pid = node.pid("etcd")
    node.die()
    wait_for(lambda: gone(pid), "etcd has ended", 1)
    node.start()
    assert node.pid("etcd") != pid


def test_sigterm_ends_it_in_order(node):
    node.start()
    pid = node.pid("etcd")
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < 3
    assert gone(pid)
    assert b"killed by" not in node.on_disk("supervisor")


def test_the_control_socket_starts_changes_and_stops_it(make_node):
    node = make_node([row("broker")]).start()
    has_member(node.paths, first := settings())
    node.ask("etcd", do="reload")
    node.wait_ready()
    pid = node.pid("etcd")
    node.ask("etcd", do="reload")  # nothing has changed
    assert node.pid("etcd") == pid

    has_member(node.paths, Settings(**{**_fields(first), "heartbeat_ms": 50, "election_ms": 400}))
    node.ask("etcd", do="reload")
    node.wait_replaced("etcd", pid)
    assert b"--heartbeat-interval=50" in Path(f"/proc/{node.pid('etcd')}/cmdline").read_bytes()
    assert node.module("etcd")["restarts"] == 0  # it was meant

    pid = node.pid("etcd")
    node.ask("etcd", do="stop")
    wait_for(lambda: gone(pid) and node.module("etcd")["state"] == "stopped", "it is stopped")
    node.ask("etcd", do="reload")
    node.wait_replaced("etcd", pid)

    node.paths.etcd_conf.unlink()
    node.ask("etcd", do="reload")
    wait_for(lambda: "etcd" not in node.modules(), "it is gone from the table")
    wait_for(lambda: told(node, "OK", "")[-1:] == [""], "health says no more of it")


def test_an_order_that_is_none_and_a_file_that_is_wrong_are_refused(node):
    node.start()
    assert node.ask_raw(b'{"cmd": "etcd", "do": "dance"}\n')["error"]["code"] == "invalid"
    assert node.ask_raw(b'{"cmd": "etcd", "do": "alarms", "alarms": [1]}\n')["error"]["code"] == "invalid"
    node.paths.etcd_conf.write_text('{"name": "n1"}')
    answer = node.ask_raw(b'{"cmd": "etcd", "do": "reload"}\n')
    assert "peer_url is missing" in answer["error"]["detail"]
    assert node.module("etcd")["state"] == "ready"  # the one that runs is left alone


def test_a_wrong_file_at_the_start_is_told_of_and_stops_nobody_else(make_node):
    node = make_node([row("broker"), row("m")])
    node.paths.cluster.mkdir(parents=True)
    node.paths.etcd_conf.write_text("{")
    node.start(ready=False)
    wait_for(lambda: node.module("m")["state"] == "ready", "the modules run")
    assert node.module("etcd")["state"] == "stopped"
    assert "not JSON" in node.module("etcd")["reason"]
    wait_for(lambda: told(node, "ERROR", "not JSON"), "health says so")


def test_an_alarm_that_was_reported_is_shown_by_name_and_taken_back(node):
    node.start()
    node.ask("etcd", do="alarms", alarms=["NOSPACE on n1"])
    found = node.module("etcd")
    assert (found["state"], found["level"], found["reason"]) == ("ready", "ERROR", "alarm NOSPACE on n1")
    wait_for(lambda: told(node, "ERROR", "alarm NOSPACE on n1"), "health names it")
    node.ask("etcd", do="alarms", alarms=[])
    assert node.module("etcd")["level"] == "OK"
    wait_for(lambda: told(node, "OK", "")[-1:] == [""], "health is well again")


def test_one_that_cannot_start_is_shown_with_its_last_words(make_node):
    node = make_node([row("broker")])
    has_member(node.paths, _of_another_machine())
    node.start(ready=False)
    wait_for(lambda: node.module("etcd")["state"] == "crashlooping", "it crashes again and again", 12)
    assert any("cannot assign requested address" in line for line in node.ask("logs", name="etcd", tail=200))


def _of_another_machine() -> Settings:
    return Settings(name="n1", token="test", peer_url="http://192.0.2.1:2380", client_url="http://192.0.2.1:2379")


def _fields(wanted: Settings) -> dict[str, object]:
    return {name: getattr(wanted, name) for name in Settings.__slots__}


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """An ext4 of its own, mounted, that `fsfreeze` stops like a dead disk."""
    image, mount = tmp_path / "image", tmp_path / "disk"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["fsfreeze", "-u", mount], check=False, capture_output=True)
        _unmount(mount)


def _unmount(mount: Path) -> None:
    def done() -> bool:
        return subprocess.run(["umount", mount], check=False, capture_output=True).returncode == 0

    wait_for(done, "the disk is unmounted")


def test_one_whose_disk_is_frozen_is_killed_before_the_disk_thaws(disk, node):
    node.paths.etcd_data.parent.mkdir(parents=True, exist_ok=True)
    (disk / "etcd").mkdir(mode=0o700)
    node.paths.etcd_data.symlink_to(disk / "etcd")
    node.start()
    pid = node.pid("etcd")
    ctl(node, "put", "/a", "kept")
    subprocess.run(["fsfreeze", "-f", disk], check=True)
    frozen_at = time.monotonic()
    writer = subprocess.Popen(
        ["etcdctl", f"--endpoints={etcd_conf.read(node.paths.etcd_conf).client_url}", "put", "/b", "1"],
        env={"PATH": os.environ["PATH"], "ETCDCTL_API": "3"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: node.module("etcd")["state"] == "hung", "it is found to hang", 4)
        killed_s = time.monotonic() - frozen_at
        assert "waits for its disk" in node.module("etcd")["reason"]
        wait_for(lambda: _states(pid) <= {b"D", b"Z", b"X"}, "every thread that the kernel lets go of has ended")
        assert b"D" in _states(pid)
        assert node.module("m")["state"] == "ready"
        time.sleep(0.5)
        assert node.pid("etcd") == pid  # and no second one is started meanwhile
    finally:
        subprocess.run(["fsfreeze", "-u", disk], check=True)
        writer.kill()
        writer.wait()
    node.wait_replaced("etcd", pid)
    assert "kept" in ctl(node, "get", "/a")
    assert killed_s < 2.0
    assert node.stop() == 0


def test_a_lease_lives_though_the_disk_of_the_leader_was_frozen_and_thaws(disk, make_node):
    """3.4.23 revokes it 5 times of 5 when the stalled leader is not killed before its disk comes back."""
    names = ("a", "b", "c")
    urls = {name: (f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}") for name in names}
    peers = {name: urls[name][0] for name in names}
    nodes = []
    for name in names:
        node = make_node([row("broker")])
        has_member(node.paths, Settings(name, *urls[name], token="three", cluster=peers, heartbeat_ms=50, election_ms=400))
        nodes.append(node)
    (disk / "etcd").mkdir(mode=0o700)
    nodes[0].paths.etcd_data.symlink_to(disk / "etcd")
    for node in nodes:
        node.start()
    pid = nodes[0].pid("etcd")
    first, *others = (urls[name][1].removeprefix("http://") for name in names)

    async def test() -> None:
        client = Client(others, None, rpc_s=0.5)
        try:
            await lives_through(client)
        finally:
            await client.close()

    async def lives_through(client: Client) -> None:
        granted = await lease.grant(client, 3)
        kept = lease.KeepAlive(client, granted.id)
        made = await client.transact(Transaction((), (Put("/mine", b"", lease=granted.id),)))
        told = {each: await status.status(client, each) for each in (first, *others)}
        leader = next(each for each in told if told[each].leads)
        if leader != first:
            await status.move_leader(client, leader, told[first].header.member_id)
        await asyncio.to_thread(subprocess.run, ["fsfreeze", "-f", disk], check=True)
        frozen_at, thawed = time.monotonic(), False
        while time.monotonic() - frozen_at < 6:
            with contextlib.suppress(StoreUnavailable, TransactionUnknown):
                await kept.renew(1)
                await client.transact(Transaction((created("/mine", made.revision),), (Put("/busy", b"1"),)))
            if time.monotonic() - frozen_at > 4 and not thawed:
                thawed = True
                await asyncio.to_thread(subprocess.run, ["fsfreeze", "-u", disk], check=True)
            await asyncio.sleep(0.2)
        assert (await client.find(Range("/mine"), 2))[0].count == 1
        kept.close()

    asyncio.run(test())
    assert nodes[0].wait_replaced("etcd", pid, 15)["restarts"] == 1


def _states(pid: int) -> set[bytes]:
    """Of its threads."""
    states = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            states.add((thread / "stat").read_bytes().rpartition(b")")[2].split()[0])
    return states


def test_one_that_was_being_ended_when_all_ends_is_killed_in_time(tmp_path):
    """It hears no SIGTERM: the kill that was to follow must not be called off with the other timers."""
    errors = []
    loop = Loop(errors.append)
    member = Etcd(loop, Reaper(loop), Paths(state=tmp_path, run=tmp_path), lambda _: None, lambda *_, **__: None, lambda: None)
    deaf = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; echo; exec sleep 60"], stdout=subprocess.PIPE)
    try:
        assert deaf.stdout is not None and deaf.stdout.readline()
        member._pid = deaf.pid
        member.restart()
        ended = []
        member.end(lambda: ended.append(True))
        wait_for(lambda: (loop.turn(0.1), ended)[1], "the supervisor goes on", 20)
        assert deaf.wait(5) == -signal.SIGKILL
    finally:
        deaf.kill()
        deaf.communicate()
        loop.close()
    assert errors == []

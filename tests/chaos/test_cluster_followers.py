"""What followers are told is lost, late or spoiled; they act on each verified rev all the same, and take over from a locked leader."""

from __future__ import annotations

import base64
import json
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from services.consensus.cluster_records import log_key
from tests.bed import faults, forming, store
from tests.bed.machine import Machine
from tests.bed.trial import Trial
from tests.chaos.revival import replaced_after, rested, rested_leader
from tests.node import Reply, until

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("fault", [faults.kill, faults.freeze])
def test_a_broker_that_dies_or_hangs_loses_hints_and_nothing_else(
    trial: Trial, chance: random.Random, fault: Callable[..., None]
) -> None:
    """On the leader, which hints at each rev, and on a follower, which waits for them."""
    leading = rested_leader(trial, "broker")
    term = trial.term()
    for machine in (leading, rested(trial, trial.followers(), "broker")):
        trial.moment(chance)
        replaced_after(fault, trial, machine, "broker")
    trial.settled()
    assert trial.term() == term


def test_an_entry_that_is_spoiled_on_its_way_is_named_not_applied_and_made_good(
    trial: Trial, chance: random.Random
) -> None:  # fmt: skip
    """In etcd itself, before a follower that was away has fetched it."""
    term, leading, follower = trial.term(), trial.leader(), chance.choice(trial.followers())
    others = [machine.name for machine in trial.cluster.machines if machine is not follower]
    with trial.storm.calm():
        faults.partition(trial.cluster, [follower.name], others)
        revs = [int(write(leading, f"entry {number}").headers["piccolo-rev"]) for number in range(3)]
        key = f"/piccolo/{leading.get('/cluster')['cluster']}/{log_key(revs[1])}"
        good = value(leading, key)
        assert store.put(leading, key, flipped(good, chance))
        # Its watch would bring the good one first: a new life of consensus lists what is there.
        instance = follower.instance("consensus")
        follower.supervisor("restart", name="consensus")
        until(lambda: follower.is_replaced("consensus", instance), "a consensus that has seen none of them", 30)
        faults.heal(trial.cluster)
        until(lambda: f"after rev {revs[0]} is not applied" in health(follower), "it is named", 30, 0.1)
        assert follower.get("/store/revision")["rev"] == revs[0]
        assert follower.get("/settings")["title"] == "entry 0", "the last good one stays"
        assert store.put(leading, key, good)
        until(lambda: follower.get("/store/revision")["rev"] == revs[2], "it is made good", 20, 0.1)
        until(lambda: "is not applied" not in health(follower), "it is named no more", 20, 0.1)
    trial.settled()
    assert trial.term() == term


def test_a_module_that_cannot_reload_is_restarted_on_followers_for_what_it_reads_and_never_on_the_leader(
    trial: Trial, chance: random.Random
) -> None:  # fmt: skip
    """The api is that module, it reads settings, and everybody writes settings all the time."""
    term, leading, follower = trial.term(), trial.leader(), chance.choice(trial.followers())
    serving = lambda: (row := follower.modules()["api"])["state"] == "ready" and row["instance"]  # noqa: E731
    before, stays = until(serving, "the api serves", 20), leading.instance("api")
    refused, rev = trial.storm.told["ConnectionRefusedError"], trial.storm.wait_acknowledged().rev
    until(lambda: follower.modules()["api"]["applied_rev"] >= rev, f"the api of {follower.name} acts on rev {rev}", 20)
    assert follower.instance("api") != before
    assert trial.storm.told["ConnectionRefusedError"] == refused, "its socket stays open"
    trial.settled()
    assert (trial.term(), leading.instance("api")) == (term, stays)


def test_no_rev_restarts_an_api_that_is_in_the_midst_of_a_change(trial: Trial, chance: random.Random) -> None:
    """Everybody writes settings all the time, and the body of one more comes slowly."""
    leading, follower = trial.leader(), chance.choice(trial.followers())
    body = json.dumps({"title": "slow"}).encode()
    head = f"PUT /api/v1/settings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30.0)
        client.connect(str(follower.run / "api.sock"))
        client.sendall(head.encode())
        time.sleep(2.5)  # a restart that was begun before is over, or has cut this one
        before = until(lambda: (row := follower.modules()["api"])["state"] == "ready" and row, "the api serves", 20)
        wrote = int(write(leading, "what it reads").headers["piccolo-rev"])
        time.sleep(7.0)
        shown = follower.modules()["api"]
        assert (shown["instance"], shown["applied_rev"] < wrote) == (before["instance"], True)
        client.sendall(body)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
    until(lambda: follower.modules()["api"]["applied_rev"] >= wrote, "it was put off, not forgotten", 20)
    trial.settled()


def test_a_leader_that_is_locked_hands_the_kernel_to_an_unlocked_node_and_follows(trial: Trial, chance: random.Random) -> None:
    term, locked = trial.term(), trial.leader()
    trial.moment(chance)
    assert locked.api("POST", "/crypto/lock").status == 200
    until(lambda: forming.leader(trial.cluster, locked), "an unlocked node leads", 20)
    trial.storm.wait_acknowledged()
    assert locked.get("/crypto/status")["locked"], "locked on purpose: no peer unlocks it"
    assert write(locked, "on a locked node").status in (307, 409, 423)
    forming.unlock(locked)
    trial.settled()
    assert trial.term()[1] > term[1]


def write(machine: Machine, title: str) -> Reply:
    return machine.api("PUT", "/settings", {"title": title}, timeout_s=15)


def health(machine: Machine) -> str:
    with suppress(OSError):
        return machine.api("GET", "/health/detail", timeout_s=5).body.decode()
    return ""


def value(machine: Machine, key: str) -> bytes:
    found = store.etcdctl(machine, "get", key, "--write-out=json")
    assert found.returncode == 0, found.stderr
    return base64.b64decode(json.loads(found.stdout)["kvs"][0]["value"])


def flipped(content: bytes, chance: random.Random) -> bytes:
    """One bit, in the middle half: the sealed body of an entry."""
    at = chance.randrange(len(content) // 4, 3 * len(content) // 4)
    return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]

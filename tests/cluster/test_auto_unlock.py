"""A member that comes back is unlocked by its peers, and stays locked where somebody wants it so."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.forming import found, join, leader, members, said, token, unlock, wait_leader
from tests.bed.machine import Machine
from tests.node import until

# A round of asks, a grant that has to outlive two beats and a second, the fold of a small log; two processors for it all.
_UNLOCKED_S = 30.0
_LEAST_S = 60


@pytest.fixture(scope="module")
def three(formed: Callable[[int], Cluster]) -> Cluster:
    return formed(3)


@pytest.fixture(scope="module")
def formed_at(three: Cluster) -> float:
    return time.monotonic()


@pytest.fixture(autouse=True)
def _whole_again(request: pytest.FixtureRequest) -> None:
    if "three" not in request.fixturenames:
        return
    bed: Cluster = request.getfixturevalue("three")
    for machine in bed.machines:
        if not machine.is_on:
            faults.power_on(machine, within_s=60)
    for machine in bed.machines:
        unlock(machine)
    leading = wait_leader(bed)
    said(leading, "settings", "set", "auto_unlock=peers", "auto_unlock_within_s=3600")
    rev = leading.get("/store/revision")["rev"]
    for machine in bed.machines:
        machine.api("GET", "/settings", headers={"Piccolo-Min-Rev": str(rev)})


def is_locked(machine: Machine) -> bool:
    return bool(machine.get("/crypto/status")["locked"])


def reason(machine: Machine) -> str:
    return str(machine.get("/crypto/status")["reason"])


def back(machine: Machine, within_s: float = _UNLOCKED_S) -> None:
    began = time.monotonic()
    until(lambda: not is_locked(machine), f"{machine.name} was unlocked by nobody's hand", within_s)
    print(f"{machine.name} was unlocked {time.monotonic() - began:.1f} s after its modules were ready")


def stays(machine: Machine, words: str) -> None:
    """Its reason says that it asked, or why it does not."""
    until(lambda: words in reason(machine), f"{machine.name} says: {words}", _UNLOCKED_S)
    assert is_locked(machine), reason(machine)


def audited(machine: Machine) -> list[tuple[str, int]]:
    """(Who asked for the key, and how it ended)."""
    audits = [each["body"] for each in machine.get("/events/history?type=Audit&limit=200")]
    return [(each["actor"], each["status"]) for each in audits if each["action"] == "POST rpc/unlock"]


def follower(bed: Cluster) -> Machine:
    leading = wait_leader(bed)
    return next(machine for machine in bed.machines if machine is not leading)


def test_a_member_that_lost_power_is_unlocked_without_a_person(three: Cluster) -> None:
    lost = follower(three)
    faults.power_off(lost)
    faults.power_on(lost, within_s=60)
    back(lost)
    rev = int(wait_leader(three).api("PUT", "/settings", {"title": "back", "auto_unlock": "peers"}).headers["piccolo-rev"])
    assert lost.api("GET", "/settings", headers={"Piccolo-Min-Rev": str(rev)}).json["title"] == "back"
    others = [machine for machine in three.machines if machine is not lost]
    until(lambda: (f"node:{lost.name}", 200) in [each for machine in others for each in audited(machine)], "it is audited", 10)


def test_so_is_the_one_that_led_and_one_whose_supervisor_was_killed(three: Cluster) -> None:
    leading = wait_leader(three)
    faults.power_off(leading)
    wait_leader(three, leading)
    faults.power_on(leading, within_s=60)
    back(leading)
    killed = follower(three)
    killed.kill()
    killed.start(wait=False)
    killed.wait_up(60)
    back(killed)


def test_with_never_it_stays_locked_and_says_so_and_a_person_unlocks_it(three: Cluster) -> None:
    said(wait_leader(three), "settings", "set", "auto_unlock=never")
    lost = follower(three)
    faults.power_off(lost)
    faults.power_on(lost, within_s=60)
    stays(lost, "auto_unlock is never")
    assert "auto_unlock is never" in lost.get("/health/detail")["components"]["lock"]["reason"]
    unlock(lost)


def test_a_node_that_was_locked_on_purpose_stays_so_until_a_person_or_a_reboot(three: Cluster) -> None:
    locked = follower(three)
    said(locked, "lock")
    stays(locked, "locked on purpose")
    locked.stop()
    locked.start()
    locked.wait_up(60)
    stays(locked, "locked on purpose")
    unlock(locked)

    said(locked, "lock")
    stays(locked, "locked on purpose")
    faults.power_off(locked)
    faults.power_on(locked, within_s=60)
    back(locked)


def test_after_all_were_off_one_password_unlocks_them_all(three: Cluster) -> None:
    for machine in three.machines:
        faults.power_off(machine)
    three.on_each(lambda machine: machine.power_on(within_s=90), 2)
    for machine in three.machines:
        stays(machine, "no member has unlocked it")
    unlock(three["n2"])
    wait_leader(three)
    for machine in three.machines:
        back(machine, 60)


def test_who_was_away_for_longer_than_is_allowed_needs_a_person(three: Cluster, formed_at: float) -> None:
    said(wait_leader(three), "settings", "set", f"auto_unlock_within_s={_LEAST_S}")
    until(lambda: time.monotonic() - formed_at > _LEAST_S, "its join is past", _LEAST_S + 5)
    lost = follower(three)
    others = [machine for machine in three.machines if machine is not lost]
    faults.power_off(lost)
    for machine in others:
        # What the members noted of it is of two hours ago, and they have to believe their note again.
        file: Path = machine.state / "cluster" / "sightings.json"
        until(file.exists, "the members note who they see", 70)
        _age(file, lost.name)
        machine.supervisor("restart", name="consensus")
    wait_leader(three)
    faults.power_on(lost, within_s=60)
    stays(lost, "last seen unlocked")


def _age(file: Path, node: str) -> None:
    seen: dict[str, Any] = json.loads(file.read_text())
    seen[node] -= 2 * 3_600_000
    file.write_text(json.dumps(seen))


def test_a_witness_gets_nothing_and_a_joiner_is_unlocked(cluster: Callable[[int], Cluster]) -> None:
    bed = cluster(3)
    bed.start()
    n1, n2, n3 = bed.machines
    found(n1)
    said(n2, "cluster", "join", n1.address, "--token", token(n1), timeout_s=130)
    back(n2)
    join(n3, n1, "--witness")
    until(lambda: all(each["voter"] for each in members(n1).values()), "three votes", 30)
    stays(n3, "a witness gets no keys")
    assert leader(bed) is not n3


def test_a_cluster_that_is_founded_with_never_says_so(cluster: Callable[[int], Cluster]) -> None:
    bed = cluster(1)
    bed.start()
    (n1,) = bed.machines
    n1.unlock()
    said(n1, "cluster", "init", "--profile", "fast", "--auto-unlock", "never")
    assert said(n1, "settings", "get", "auto_unlock").strip() == "never"

"""A crash at any step of a recovery leaves the cluster as it was, or begun anew; then the order can be given again.

It is the second of two that is left, which never had a vote in etcd: it recovers all the same.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.forming import asked, asking, digest, members, opened, said, trouble, wait_leader
from tests.bed.machine import Machine
from tests.node import until

pytestmark = pytest.mark.timeout(240)

# What consensus leaves on the way, in order; each is there before the next step begins.
STEPS = ("journal", "aside", "settings", "etcd")


@pytest.fixture(scope="module")
def left(formed: Callable[[int], Cluster]) -> Machine:
    """n2, whose only other member is gone for good."""
    pair = formed(2)
    n1, n2 = pair.machines
    rev = int(wait_leader(pair).api("PUT", "/settings", {"title": "kept"}).headers["piccolo-rev"])
    until(lambda: digest(n2)[0] >= rev, "n2 has it", 20)
    faults.power_off(n1)
    until(lambda: "no quorum" in trouble(n2), "n2 has no quorum", 20)
    return n2


def token(machine: Machine) -> str:
    """Of its etcd's settings; empty while it has none."""
    with suppress(OSError, ValueError):
        return str(json.loads((machine.state / "cluster" / "etcd.json").read_bytes())["token"])
    return ""


def gen(machine: Machine) -> int:
    return int(json.loads((machine.state / "cluster" / "seen.json").read_bytes())["gen"])


def reached(machine: Machine, step: str, former: str) -> bool:
    if step == "journal":
        return (machine.state / "cluster" / "recovery.json").exists()
    if step == "aside":
        return bool(list(machine.state.glob("etcd.before-*")))
    if step == "settings":
        return token(machine) not in ("", former)
    return token(machine) not in ("", former) and bool(machine.named("etcd"))


def recover(machine: Machine) -> threading.Thread:
    """Again while its consensus has just started, and does not know yet that etcd is silent."""

    def ask() -> None:
        while b'"busy"' in machine.api("POST", "/cluster/recover", {"force": True}, timeout_s=90).body:
            time.sleep(0.2)

    return asking(ask)


def is_as_it_was(machine: Machine, former: str, before: int) -> None:
    until(lambda: not (machine.state / "cluster" / "recovery.json").exists(), "nothing is to be ended", 30)
    until(lambda: "no quorum" in trouble(machine), "it waits for the others again", 30)
    assert token(machine) == former and gen(machine) == before
    assert not list(machine.state.glob("etcd.before-*"))
    until(lambda: machine.modules().get("etcd", {}).get("state") == "ready", "the former etcd runs", 30)


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_of_consensus_before_the_commit_leaves_everything_as_it_was(left: Machine, step: str) -> None:
    former, before, instance, end = token(left), gen(left), left.instance("consensus"), digest(left)
    order = recover(left)
    until(lambda: reached(left, step, former), f"it has come to {step}", 40, 0.001)
    faults.kill(left, "consensus")
    until(lambda: left.is_replaced("consensus", instance), "consensus is there again", 20)
    order.join(90)
    assert not order.is_alive()
    is_as_it_was(left, former, before)
    assert digest(left) == end
    assert asked(left, "PUT", "/settings", {"title": "nobody leads"}).status == 503


def test_a_loss_of_power_on_the_way_leaves_everything_as_it_was(left: Machine) -> None:
    former, before = token(left), gen(left)
    order = recover(left)
    until(lambda: reached(left, "settings", former), "it has come to the settings", 40, 0.001)
    faults.power_off(left)
    order.join(90)
    assert not order.is_alive()
    faults.power_on(left, within_s=60)
    is_as_it_was(left, former, before)
    until(lambda: "just started" not in left.ctl("cluster", "recover").stderr, "it knows that etcd is silent", 20)
    done = left.ctl("cluster", "recover", "--force")
    assert done.returncode == 4, "it is locked"
    assert "unlock" in done.stderr
    opened(left)


def test_a_crash_right_after_the_commit_is_followed_by_the_rest(left: Machine) -> None:
    former, before, instance, store = gen(left), token(left), left.instance("consensus"), left.instance("persistence")
    order = recover(left)

    def is_begun() -> bool:
        with suppress(OSError, ValueError):
            return bool(json.loads((left.state / "cluster" / "recovery.json").read_bytes())["stage"] != "moving")
        return False

    until(is_begun, "it counts", 60, 0.001)
    faults.kill(left, "consensus")
    until(lambda: left.is_replaced("consensus", instance), "consensus is there again", 20)
    order.join(90)
    assert not order.is_alive()
    until(lambda: left.is_replaced("persistence", store), "no process is left that knew the former tokens", 20)
    until(lambda: members(left).get("n2", {}).get("leads_kernel"), "it leads", 30)
    assert gen(left) > former and token(left) != before and sorted(members(left)) == ["n2"]
    assert asked(left, "GET", "/settings").json["title"] == "kept"
    until(lambda: asked(left, "PUT", "/settings", {"title": "after"}).status == 200, "it takes writes", 20)
    until(lambda: not (left.state / "cluster" / "recovery.json").exists(), "n1 is forgotten", 20)
    assert "nothing is to be recovered" in left.ctl("cluster", "recover").stderr
    assert said(left, "cluster", "list", "-o", "name").split() == ["n2"]

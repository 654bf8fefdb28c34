"""A cluster of three machines of the bed, profile `fast`, against its figures.

    python -m tests.bench.cluster [--rounds N]

All three share this machine's processors and its disk, and each other's pages of memory: take no figure for that of three
machines. "Accepts a write" is seen by a program with a token that asks each of the others every 10 ms, each time on a new
connection, from before the fault on, and follows no redirect.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tests.bed import faults, forming
from tests.bed.cluster import Cluster
from tests.bed.machine import API_PORT, Machine
from tests.bench.members import Members, in_order, kill_tree, say
from tests.node import until

_EVERY_S = 0.01
_FEW = 5  # rounds of what varies little
_PER_S, _LOAD_S = 50, 4.0
_COMMITS = 200
_REVS = 10_000
_NOT_OURS = ("cat", "podman", "etcd", "gocryptfs", "conmon")  # `cat` is what init.sh became


class Program:
    """Asks one machine, with a token, and goes nowhere else."""

    def __init__(self, member: Machine) -> None:
        made = member.api("POST", "/auth/tokens", {"name": "bench", "scope": "admin"})
        assert made.status == 201, made
        self._headers = {
            "Content-Type": "application/json", "Authorization": f"Bearer {made.json['token']}", "Piccolo-Redirect": "never",
        }  # fmt: skip

    def write(self, machine: Machine, timeout_s: float = 1.0) -> bool:
        connection = http.client.HTTPConnection(machine.address, API_PORT, timeout=timeout_s)
        try:
            connection.request("PUT", "/api/v1/settings", json.dumps({"title": f"{time.monotonic()}"}), self._headers)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def taken_over_s(program: Program, others: list[Machine], fault: Callable[[], object]) -> float:
    """From the beginning of the fault to the first write that another machine acknowledges."""
    accepted: list[float] = []
    end, begun = threading.Event(), threading.Barrier(len(others) + 1)

    def ask(machine: Machine) -> None:
        begun.wait()
        while not end.is_set():
            if program.write(machine):
                accepted.append(time.monotonic())
                end.set()
            end.wait(_EVERY_S)

    askers = [threading.Thread(target=ask, args=(machine,), daemon=True) for machine in others]
    for asker in askers:
        asker.start()
    begun.wait()
    began = time.monotonic()
    try:
        fault()
        until(end.is_set, "another machine accepts a write", 30)
    finally:
        end.set()
        for asker in askers:
            asker.join(5)
    return min(accepted) - began


class Bench(Members):
    """`machines` are the members; one that is to join is not among them yet."""

    def __init__(self, cluster: Cluster, program: Program, machines: list[Machine]) -> None:
        super().__init__(cluster, machines)
        self.program = program

    def calm(self) -> Machine:
        """The leader, once everybody is there, unlocked and at the same rev."""
        until(lambda: len(self._ends()) == 1, "the same rev and digest everywhere", 60, 0.1)
        self.wait_alive()
        time.sleep(1.0)  # one round does not pay for the one before
        return forming.wait_leader(self.cluster)

    def _ends(self) -> set[Any]:
        try:
            return {(each["rev"], each["digest"]) for each in (machine.get("/store/revision") for machine in self.machines)}
        except (OSError, AssertionError):
            return set()


# --- another node takes over


def machine_lost(bench: Bench, rounds: int) -> dict[str, Any]:
    """Every other time the lost machine hosts the leader of etcd too."""
    took: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        bench.calm()
        etcd = forming.wait_etcd_leader(bench.cluster)
        forming.switch_over(bench.cluster, etcd if number % 2 == 0 else bench.others(etcd)[number % 2])
        leading = bench.calm()
        hosts = forming.wait_etcd_leader(bench.cluster) is leading
        took[hosts].append(taken_over_s(bench.program, bench.others(leading), partial(faults.power_off, leading)))
        say(f"machine lost: {took[hosts][-1]:.2f} s{', with the leader of etcd' if hosts else ''}")
        bench.back(leading)
    both = took[True] + took[False]
    return {
        "p50_s": statistics.median(both), "worst_s": max(both), "rounds": rounds,
        "with_etcd_leader_s": in_order(took[True]), "without_s": in_order(took[False]),
    }  # fmt: skip


def tree_killed(bench: Bench) -> list[float]:
    took = []
    for _ in range(_FEW):
        leading = bench.calm()
        took.append(taken_over_s(bench.program, bench.others(leading), partial(kill_tree, leading)))
        say(f"tree killed: {took[-1]:.2f} s")
        bench.back(leading)
    return took


def clean_stop(bench: Bench) -> list[float]:
    took = []
    for _ in range(_FEW):
        leading = bench.calm()
        took.append(taken_over_s(bench.program, bench.others(leading), leading.stop))
        say(f"clean stop: {took[-1]:.2f} s")
        bench.back(leading)
    return took


# --- a switchover under load


class Load:
    """So many writes a second, each sent when it is due, through the sockets of all members in turn, as piccoloctl does."""

    def __init__(self, machines: list[Machine]) -> None:
        self._machines = machines
        self.acknowledged: list[float] = []
        self.errors: list[str] = []

    def run(self, seconds: float) -> None:
        began = time.monotonic()
        with ThreadPoolExecutor(32) as pool:
            for number in range(int(seconds * _PER_S)):
                time.sleep(max(0.0, began + number / _PER_S - time.monotonic()))
                pool.submit(self._write, self._machines[number % len(self._machines)], number)

    def _write(self, machine: Machine, number: int) -> None:
        try:
            reply = machine.api("PUT", "/settings", {"title": f"load {number}"}, timeout_s=10)
        except (OSError, http.client.HTTPException) as error:
            self.errors.append(f"{type(error).__name__}: {error}")
            return
        if reply.status == 200:
            self.acknowledged.append(time.monotonic())
        else:
            self.errors.append(f"{machine.name}: {reply}")

    def gap_s(self, since: float, until_at: float) -> float:
        """The longest time without an acknowledgement that touches the span."""
        times = sorted(self.acknowledged)
        pairs = itertools.pairwise(times)
        return max((later - earlier for earlier, later in pairs if later > since and earlier < until_at), default=0.0)


def switchover(bench: Bench) -> dict[str, Any]:
    """`quiet`: the longest gap of the same load in the two seconds before, which is this machine's own."""
    gaps, quiet, errors, asked = [], [], [], []
    for _ in range(_FEW):
        leading = bench.calm()
        to = bench.others(leading)[0]
        load = Load(bench.machines)
        thread = threading.Thread(target=load.run, args=(_LOAD_S,))
        thread.start()
        time.sleep(_LOAD_S / 2)
        began = time.monotonic()
        reply = leading.api("POST", "/leadership/kernel/switchover", {"to": to.name})
        ended = time.monotonic()
        thread.join()
        assert reply.status == 200, reply
        gaps.append(load.gap_s(began, ended + 0.2))
        quiet.append(load.gap_s(began - _LOAD_S / 2 + 0.3, began))
        asked.append(ended - began)
        errors += load.errors
        say(f"switchover: gap {gaps[-1] * 1e3:.0f} ms, quiet {quiet[-1] * 1e3:.0f} ms, {len(load.errors)} errors")
    return {
        "gap_p50_ms": statistics.median(gaps) * 1e3, "gap_worst_ms": max(gaps) * 1e3, "quiet_gap_worst_ms": max(quiet) * 1e3,
        "request_p50_ms": statistics.median(asked) * 1e3, "errors": len(errors), "first_errors": errors[:3],
    }  # fmt: skip


# --- commits


def commit(bench: Bench) -> dict[str, Any]:
    leading = bench.calm()
    found: dict[str, Any] = json.loads(_inside(leading, "measure"))
    return found


def _inside(machine: Machine, *arguments: str) -> str:
    what, *more = arguments
    places = [str(machine.state_dir), str(machine.run_dir)]
    done = subprocess.run(
        machine.inside(sys.executable, "-m", "tests.bench.cluster_commit", what, *places, *more),
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} on {machine.name}: {done.stderr[-2000:]}")
    return done.stdout


def verified(bench: Bench) -> dict[str, float]:
    """From the acknowledgement on the leader, and from the write's sending, to the answer that each follower has verified it.

    A follower's answer is one that waited for the rev, on a connection of its API: that is in the figure.
    """
    leading = bench.calm()
    followers = bench.others(leading)
    from_ack, from_send = [], []
    rev = int(leading.get("/store/revision")["rev"])
    with ThreadPoolExecutor(len(followers)) as pool:
        for number in range(_COMMITS):
            waiting = [pool.submit(_reached, machine, rev + 1) for machine in followers]
            time.sleep(0.03)  # they wait, and nothing else happens
            sent_at = time.monotonic()
            reply = leading.api("PUT", "/settings", {"title": f"visible {number}"})
            acknowledged_at = time.monotonic()
            assert (reply.status, int(reply.headers["piccolo-rev"])) == (200, rev + 1), reply
            rev += 1
            last = max(each.result() for each in waiting)
            from_ack.append(max(0.0, last - acknowledged_at))
            from_send.append(last - sent_at)
    return {
        "p50_ms": statistics.median(from_ack) * 1e3, "p99_ms": statistics.quantiles(from_ack, n=100)[98] * 1e3,
        "from_send_p50_ms": statistics.median(from_send) * 1e3,
        "from_send_p99_ms": statistics.quantiles(from_send, n=100)[98] * 1e3,
    }  # fmt: skip


def _reached(machine: Machine, rev: int) -> float:
    reply = machine.api("GET", "/settings", headers={"Piccolo-Min-Rev": str(rev)})
    assert reply.status == 200, reply
    return time.monotonic()


def lost_hint(bench: Bench) -> list[float]:
    """From the acknowledgement to a follower that has verified the rev, whose broker stands still as the hint comes.

    The supervisor replaces a broker that does not beat, and what it had taken goes with it. The moment within the second of
    the follower's poll is random.
    """
    took: list[float] = []
    for number in range(_FEW):
        leading = bench.calm()
        follower = bench.others(leading)[number % 2]  # too many deaths of one within a minute, and its next life waits
        time.sleep(random.uniform(0.0, 1.0))
        instance = follower.instance("broker")
        faults.freeze(follower, "broker")
        reply = leading.api("PUT", "/settings", {"title": f"without a hint, {len(took)}"})
        began, rev = time.monotonic(), int(reply.headers["piccolo-rev"])
        until(lambda rev=rev, follower=follower: follower.get("/store/revision")["verified"] >= rev, "verified", 10, 0.005)
        took.append(time.monotonic() - began)
        until(lambda follower=follower, instance=instance: follower.is_replaced("broker", instance), "a new broker", 60)
        until(follower.all_ready, "every module ready", 40, 0.1)
        say(f"lost hint: {took[-1]:.2f} s")
    return took


# --- a new node


def join(bench: Bench, new: Machine) -> dict[str, Any]:
    """A machine that was alone joins, with 10,000 revs to take; its memory before and after, without etcd."""
    new.power_on(60)
    new.unlock()
    alone = _settled_pss_mib(new)
    leading = bench.calm()
    rev = int(leading.get("/store/revision")["rev"])
    _inside(leading, "fill", str(max(0, _REVS - rev)))
    rev = int(bench.calm().get("/store/revision")["rev"])
    token = forming.token(leading)
    began = time.monotonic()
    forming.said(new, "cluster", "join", leading.address, "--token", token, "--discard-local", "-y", timeout_s=130)
    said_s = time.monotonic() - began
    forming.unlock(new)
    until(lambda: forming.members(leading).get(new.name, {}).get("voter"), "a voter", 60, 0.05)
    until(lambda: new.get("/store/revision")["verified"] >= rev, "verified", 60, 0.02)
    seconds = time.monotonic() - began
    member = _settled_pss_mib(new)
    return {
        "join_s": seconds, "command_s": said_s, "revs": rev, "pss_alone_mib": alone, "pss_member_mib": member,
        "pss_extra_mib": member - alone, "pss_leader_mib": _pss_mib(leading),
    }  # fmt: skip


def _settled_pss_mib(machine: Machine) -> float:
    """The least of some seconds of rest: a start's own memory is given back."""
    found = []
    for _ in range(10):
        time.sleep(1)
        found.append(_pss_mib(machine))
    return min(found)


def _pss_mib(machine: Machine) -> float:
    """All of piccolod's own processes: not etcd, podman, conmon, gocryptfs and containers."""
    total = 0
    for pid in machine.members().values():
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() not in _NOT_OURS:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue  # it has ended
    return total / 1024


def measure(rounds: int = 20) -> dict[str, Any]:
    load = [os.getloadavg()[0]]
    with Cluster(4) as cluster:
        *machines, new = cluster.machines
        for machine in machines:
            machine.power_on(60)
        forming.found(machines[0])
        for machine in machines[1:]:
            forming.join(machine, machines[0])
        bench = Bench(cluster, Program(machines[0]), machines)
        results: dict[str, Any] = {"commit": commit(bench), "verified": verified(bench), "lost_hint_s": lost_hint(bench)}
        results["switchover"] = switchover(bench)
        load.append(os.getloadavg()[0])
        results["clean_stop_s"] = clean_stop(bench)
        results["tree_killed_s"] = tree_killed(bench)
        results["machine_lost"] = machine_lost(bench, rounds)
        load.append(os.getloadavg()[0])
        results["join"] = join(bench, new)
    return {**results, "load": [*load, os.getloadavg()[0]]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cluster")
    parser.add_argument("--rounds", type=int, default=20, help="how often the leader's machine is lost (20)")
    print(json.dumps(measure(parser.parse_args().rounds), indent=2))

"""Apps of a cluster of three machines of the bed, profile `fast`: how long their clients wait when something is lost.

    python -m tests.bench.failover [--rounds N]

All three share this machine's processors. A client asks each surviving node every 10 ms, each time on a new connection, from
before the fault on. An outage ends with the first answer to a request that was sent after the fault, at the node that was last.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tests.bed import faults, forming
from tests.bed.cluster import Cluster
from tests.bed.machine import Machine
from tests.bench.members import Members, in_order, kill_tree, say
from tests.node import until

_EVERY_S = 0.01
_FEW = 5
_MANY = 50
_PATIENCE_S = 20.0


class Eye:
    """Asks for an app through one machine."""

    def __init__(self, machine: Machine, port: int) -> None:
        self._machine, self._port = machine, port
        self._end = threading.Event()
        self.answers: list[tuple[float, float, bool]] = []  # (sent, answered, 200)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join(_PATIENCE_S + 1)

    def _run(self) -> None:
        while not self._end.wait(_EVERY_S):
            sent = time.monotonic()
            try:
                ok = self._machine.fetch(self._port, "/health", timeout_s=_PATIENCE_S).status == 200
            except (OSError, http.client.HTTPException):
                ok = False
            self.answers.append((sent, time.monotonic(), ok))

    def served_at(self, since: float) -> float:
        """When a request that was sent after `since` was first answered; 0: not yet."""
        return next((answered for sent, answered, ok in list(self.answers) if ok and sent >= since), 0.0)

    def failures(self) -> int:
        return sum(not ok for _, _, ok in self.answers)

    def longest_s(self) -> float:
        return max(answered - sent for sent, answered, _ in self.answers)


@contextmanager
def eyes(machines: list[Machine], port: int) -> Iterator[list[Eye]]:
    made = [Eye(machine, port) for machine in machines]
    try:
        for eye in made:
            until(lambda eye=eye: any(ok for _, _, ok in list(eye.answers)), "the first answer", 30)
        yield made
    finally:
        for eye in made:
            eye.close()


def outage_s(through: list[Machine], port: int, fault: Callable[[], object]) -> float:
    with eyes(through, port) as seen:
        began = time.monotonic()
        fault()
        until(lambda: all(eye.served_at(began) for eye in seen), "served again through each", 40, 0.005)
        return max(eye.served_at(began) for eye in seen) - began


class Bench(Members):
    def install(self, name: str) -> int:
        leading = forming.wait_leader(self.cluster)
        app = leading.install(leading.demo_manifest(name), running=False)
        return int(app["listeners"][0]["public_port"])

    def home(self, name: str) -> Machine | None:
        for machine in self.machines:
            if machine.is_on and machine.process is not None:
                reply = forming.asked(machine, "GET", f"/leadership/app:{name}")
                if reply.status == 200 and reply.json["role"] == "leader":
                    return machine
        return None

    def calm(self, name: str) -> Machine:
        """The app's node, once everybody is there and stands by."""
        self.wait_alive()
        found = self.led(name)
        until(lambda: self._could(found, name), f"every other node could lead {name}", 40, 0.2)
        time.sleep(1.0)
        return found

    def led(self, name: str) -> Machine:
        found: Machine = until(lambda: self.home(name), f"{name} is led", 40)
        return found

    def _could(self, by: Machine, name: str) -> bool:
        found = by.get(f"/leadership/app:{name}")["candidates"]
        return len(found) == len(self.machines) and all(each["eligible"] for each in found)


def told_s(home: Machine, name: str) -> float:
    """The outage that the phases of the last change add up to, once they are all told."""

    def whole() -> dict[str, float] | None:
        phases: dict[str, float] = home.get(f"/leadership/app:{name}/why")["history"][0]["phases"]
        return phases if "routed" in phases else None

    phases = until(whole, f"the phases of {name} are told", 10, 0.1)
    say(", ".join(f"{phase} {took:.0f} ms" for phase, took in phases.items()))
    return float(sum(phases.values())) / 1000


def machine_lost(bench: Bench, name: str, port: int, rounds: int) -> dict[str, Any]:
    """Every second time the one that hosts etcd's leader, too, unless that moves at the last moment."""
    took: dict[bool, list[float]] = {True: [], False: []}
    beyond: list[float] = []
    for number in range(rounds):
        home = bench.calm(name)
        if number % 2 and (to := forming.wait_etcd_leader(bench.cluster)) is not home:
            forming.said(home, "leaders", "switchover", name, "--to", to.name)
            home = bench.calm(name)
        hosts = forming.wait_etcd_leader(bench.cluster) is home
        took[hosts].append(outage_s(bench.others(home), port, partial(faults.power_off, home)))
        say(f"machine lost: {took[hosts][-1]:.2f} s{', with the leader of etcd' if hosts else ''}")
        beyond.append(took[hosts][-1] - told_s(bench.led(name), name))
        bench.back(home)
    both = took[True] + took[False]
    return {
        "p50_s": statistics.median(both), "worst_s": max(both), "rounds": rounds,
        "with_etcd_leader_s": in_order(took[True]), "without_s": in_order(took[False]),
        "outage_beyond_phases_s": in_order(beyond),
    }  # fmt: skip


def tree_killed(bench: Bench, name: str, port: int) -> list[float]:
    took = []
    for _ in range(_FEW):
        home = bench.calm(name)
        took.append(outage_s(bench.others(home), port, partial(kill_tree, home)))
        say(f"tree killed: {took[-1]:.2f} s")
        bench.back(home)
    return took


def app_crash(bench: Bench, name: str, port: int) -> list[float]:
    """From the death of the app's process to its first answer on the same node. Few: too many and another node leads it."""
    took = []
    for _ in range(_FEW - 2):
        home = bench.calm(name)
        pid = home.podman("inspect", "--format", "{{.State.Pid}}", f"piccolo-{name}").strip()
        with eyes([home], port) as (eye,):
            subprocess.run(home.inside("kill", "-9", pid), check=True)
            began = time.monotonic()
            until(lambda eye=eye, began=began: eye.served_at(began), "served again", 40, 0.002)
            took.append(eye.served_at(began) - began)
        say(f"app crash: {took[-1]:.2f} s")
    return took


def planned(bench: Bench, name: str, port: int) -> dict[str, Any]:
    """`longest`: of all answers through all nodes."""
    longest, beyond, failed = [], [], 0
    for _ in range(_FEW):
        home = bench.calm(name)
        with eyes(bench.machines, port) as seen:
            reply = home.api("POST", f"/leadership/app:{name}/switchover", {}, timeout_s=60)
            assert reply.status == 200, reply
            time.sleep(2.0)
        longest.append(max(eye.longest_s() for eye in seen))
        failed += sum(eye.failures() for eye in seen)
        say(f"planned move: longest {longest[-1]:.2f} s, {failed} failed so far")
        beyond.append(longest[-1] - told_s(bench.led(name), name))
    return {"longest_s": in_order(longest), "failed": failed, "outage_beyond_phases_s": in_order(beyond)}


def many_lost(bench: Bench) -> dict[str, Any]:
    """All of 50 apps are on one node when it is lost."""
    names = [f"many{number}" for number in range(_MANY)]
    ports = {name: bench.install(name) for name in names}
    for name in names:
        bench.calm(name)
    counts = {machine.name: sum(bench.home(name) is machine for name in names) for machine in bench.machines}
    lost = max(bench.machines, key=lambda machine: counts[machine.name])
    through = bench.others(lost)[0]
    of_lost = [name for name in names if bench.home(name) is lost]
    began = time.monotonic()
    faults.power_off(lost)

    def served(name: str) -> bool:
        try:
            return through.fetch(ports[name], "/health", timeout_s=_PATIENCE_S).status == 200
        except (OSError, http.client.HTTPException):
            return False

    for name in of_lost:
        until(partial(served, name), f"{name} served", 60)
    seconds = time.monotonic() - began
    after = {machine.name: sum(bench.home(name) is machine for name in names) for machine in bench.others(lost)}
    bench.back(lost)
    return {"seconds": seconds, "lost": len(of_lost), "before": counts, "after": after}


def measure(rounds: int = 20, *, many: bool = True) -> dict[str, Any]:
    load = [os.getloadavg()[0]]
    with Cluster(3) as cluster:
        cluster.start()
        forming.form(cluster)
        cluster.load_demo_image()
        bench = Bench(cluster, cluster.machines)
        port = bench.install("hello")
        results: dict[str, Any] = {
            "planned_move": planned(bench, "hello", port),
            "tree_killed_s": tree_killed(bench, "hello", port),
            "machine_lost": machine_lost(bench, "hello", port, rounds),
            "app_crash_s": app_crash(bench, "hello", port),
        }
        load.append(os.getloadavg()[0])
        if many:
            results["many_lost"] = many_lost(bench)
    return {**results, "load": [*load, os.getloadavg()[0]]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.failover")
    parser.add_argument("--rounds", type=int, default=20, help="how often the app's machine is lost (20)")
    parser.add_argument("--no-many", action="store_true", help="leave the 50 apps out")
    chosen = parser.parse_args()
    print(json.dumps(measure(chosen.rounds, many=not chosen.no_many), indent=2))

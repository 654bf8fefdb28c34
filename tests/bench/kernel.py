"""The process tree against its figures, and runit and supervisord beside it.

    python -m tests.bench.kernel

Times are from the signal to READY of the new process, as the supervisor's control socket shows it (asked each
millisecond). The peers restart a program that imports what one of our modules imports and then says that it is ready.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from piccolod.kernel import MODULES, Spawn
from tests.node import ROOT, Node, until

_FORKED = [spec.name for spec in MODULES if spec.spawn is Spawn.FORK]
_OTHERS = ("podman", "etcd", "gocryptfs", "conmon")
_CALM_S = 0.3  # between two faults, so that one restart does not pay for the one before


def _ready_again(node: Node, module: str, instance: str, number: int) -> float:
    began = time.monotonic()
    node.signal(module, number)
    until(lambda: node.is_replaced(module, instance), f"{module} ready", 10, every_s=0.001)
    return time.monotonic() - began


def restarts(number: int, rounds: int) -> dict[str, float]:
    """Median seconds from the signal to ready, a module. Each round is a new node: a second death within a minute waits."""
    took: dict[str, list[float]] = {name: [] for name in _FORKED}
    for _ in range(rounds):
        with _settled() as node:
            for name in _FORKED:
                took[name].append(_ready_again(node, name, node.instance(name), number))
                time.sleep(_CALM_S)
    return {name: statistics.median(values) for name, values in took.items()}


@contextlib.contextmanager
def _settled() -> Iterator[Node]:
    with Node() as node:
        node.start()
        node.unlock()
        time.sleep(_CALM_S)
        yield node


def all_at_once(node: Node) -> float:
    before = node.modules()
    began = time.monotonic()
    for spec in MODULES:
        os.kill(int(before[spec.name]["pid"]), signal.SIGKILL)
    until(
        lambda: all(node.is_replaced(spec.name, str(before[spec.name]["instance"])) for spec in MODULES),
        "all ready", 20, every_s=0.002,
    )  # fmt: skip
    return time.monotonic() - began


def cold_start() -> float:
    with Node() as node:
        began = time.monotonic()
        node.start(wait=False)
        until(node.all_ready, "ready", 20, every_s=0.005)
        return time.monotonic() - began


def memory(node: Node) -> dict[str, float]:
    """PSS in MiB by process: all that `_tree` counts."""
    return {name: _pss_mib(pid) for name, pid in _tree(node).items()}


def _tree(node: Node) -> dict[str, int]:
    """Every process of piccolod's own, by name.

    Counted: the supervisor and all its descendants (modules, log writer, zygote and its spare process), both leashes. Not
    counted: podman's service, its monitors and containers, gocryptfs, etcd.
    """
    assert node.process is not None
    tree = node.supervisor("tree")
    named = {str(module["name"]): int(module["pid"]) for module in tree["modules"] if module["pid"]}
    named |= {name: int(tree[name]["pid"]) for name in ("zygote", "log_writer") if tree[name]["pid"]}
    names = {pid: name for name, pid in named.items() if name not in _OTHERS}
    found = {"supervisor": node.process.pid}
    for pid in _descendants(node.process.pid):
        if pid not in (named.get(name) for name in _OTHERS) and _program(pid) not in _OTHERS:
            found[names.get(pid, f"spare {pid}")] = pid
    return found | {name: pid for name, pid in named.items() if name.startswith("leash.")}


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = list(children.get(pid, []))
    for child in found:
        found += children.get(child, [])
    return found


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no Pss of {pid}")


def idle_cpu(node: Node, seconds: float = 30.0) -> float:
    """Percent of one core that all that `_tree` counts uses when nothing happens."""

    def ticks(pids: list[int]) -> int:
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
        return sum(int(each[11]) + int(each[12]) for each in fields)

    pids = list(_tree(node).values())
    before = ticks(pids)
    time.sleep(seconds)
    return (ticks(pids) - before) / os.sysconf("SC_CLK_TCK") / seconds * 100


# --- peers


@contextlib.contextmanager
def _ready_socket(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(folder / "ready"))
        sock.settimeout(20)
        yield sock


def _peer_rounds(sock: socket.socket, rounds: int) -> float:
    pid = int(sock.recv(64))
    took = []
    for _ in range(rounds):
        time.sleep(1.5)  # both peers call a program that lived less than a second a failure, and wait
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        pid = int(sock.recv(64))
        took.append(time.monotonic() - began)
    return statistics.median(took)


def runit(rounds: int) -> float | None:
    if shutil.which("runsv") is None:
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        service = folder / "module"
        service.mkdir()
        run = service / "run"
        run.write_text(f"#!/bin/sh\ncd {ROOT}\nexec {sys.executable} -m tests.bench.peer_module {folder}/ready\n")
        run.chmod(0o755)
        with _ready_socket(folder) as sock:
            runsv = subprocess.Popen(["runsv", str(service)])
            try:
                return _peer_rounds(sock, rounds)
            finally:
                runsv.terminate()
                runsv.wait(10)


def supervisord(rounds: int) -> float | None:
    if shutil.which("supervisord") is None:
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "conf").write_text(
            f"[supervisord]\nnodaemon=true\nlogfile={folder}/log\npidfile={folder}/pid\n"
            f"[program:module]\ncommand={sys.executable} -m tests.bench.peer_module {folder}/ready\ndirectory={ROOT}\n"
            "autorestart=true\nstartsecs=1\n"
        )
        with _ready_socket(folder) as sock:
            process = subprocess.Popen(["supervisord", "-c", str(folder / "conf")], stdout=subprocess.DEVNULL)
            try:
                return _peer_rounds(sock, rounds)
            finally:
                process.terminate()
                process.wait(15)


def measure(rounds: int = 5) -> dict[str, Any]:
    colds = [cold_start() for _ in range(3)]
    with _settled() as node:
        time.sleep(3)
        pss = memory(node)
        cpu = idle_cpu(node)
        together = [all_at_once(node)]
    for _ in range(2):
        with _settled() as node:
            together.append(all_at_once(node))
    killed = restarts(signal.SIGKILL, rounds)
    frozen = restarts(signal.SIGSTOP, 1)
    peers = {"runit": runit(rounds), "supervisord": supervisord(rounds)}
    median = statistics.median(killed.values())
    return {
        "kill_to_ready_ms": {name: round(value * 1000, 1) for name, value in killed.items()},
        "kill_to_ready_median_ms": median * 1000,
        "peers_ms": {name: value * 1000 for name, value in peers.items() if value},
        "times_faster_than": {name: value / median for name, value in peers.items() if value},
        "stop_to_ready_max_s": max(frozen.values()),
        "all_killed_to_all_ready_ms": statistics.median(together) * 1000,
        "cold_start_s": statistics.median(colds),
        "counted": "supervisor, its descendants, both leashes; not podman, conmon, containers, gocryptfs, etcd",
        "pss_mib": {name: round(value, 1) for name, value in pss.items()},
        "pss_total_mib": sum(pss.values()),
        "idle_cpu_percent": cpu,
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))

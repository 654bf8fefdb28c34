"""The relay, one worker, against HAProxy with one thread: same host, same run, turn by turn.

`measure()` returns medians and ratios; run as a program it prints a table and the same as JSON. Both sides forward plain TCP on
loopback to the same servers: an HAProxy that answers HTTP by itself, and iperf3. The relay runs with its real route table and
gate, so that a new connection costs here what it costs in the module.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
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
from typing import Any, Final

from piccolod import clock
from piccolod.leadership import page as deadline_page

ROOT: Final = Path(__file__).resolve().parents[2]
WORKER: Final = Path(__file__).with_name("relay_worker.py")
CONNECTIONS: Final = 32
GOALS: Final = {"keep_alive": 0.8, "new_connections": 0.8, "bulk": 1.0}
UNITS: Final = {"keep_alive": "requests/s", "new_connections": "requests/s", "bulk": "Gb/s"}
PROGRAMS: Final = ("haproxy", "wrk", "iperf3")

HAPROXY: Final = """
global
  nbthread 1
  maxconn 4000
defaults
  timeout connect 5s
  timeout client 60s
  timeout server 60s
"""
ANSWERS: Final = """
frontend answers
  mode http
  bind 127.0.0.1:{port}
  http-request return status 200 content-type text/plain string "a small page, as an app would send it"
"""
_FORWARD: Final = """
frontend f{public}
  mode tcp
  bind 127.0.0.1:{public}
  default_backend b{public}
backend b{public}
  mode tcp
  server s 127.0.0.1:{target}
"""


def missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


def measure(rounds: int = 5, seconds: int = 2) -> dict[str, Any]:
    """Medians of `rounds` interleaved runs: for each figure `relay`, `haproxy`, `direct`, `ratio`, `goal`, `unit`, `reached`,
    and the CPU time of one worker for a request (or a gigabit) beside HAProxy's. About 20 s a round. Without its peers every
    `ratio` is None."""
    if missing():
        return {figure: {"ratio": None, "missing": missing()} for figure in GOALS}
    with contextlib.ExitStack() as stack:
        sides = _start(stack)
        seen: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for turn in range(rounds):
            for figure in GOALS:
                # Who comes first alternates: the host's load drifts.
                for side in sorted(sides, reverse=bool(turn % 2)):
                    seen.setdefault((figure, side), []).append(run(figure, sides[side], seconds))
        return {figure: summary(figure, seen, GOALS[figure]) for figure in GOALS}


class Side:
    """One way to the servers: its process and its two ports."""

    def __init__(self, pid: int, http: int, bulk: int) -> None:
        self.pid = pid
        self.http = http
        self.bulk = bulk


def _start(stack: contextlib.ExitStack) -> dict[str, Side]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
    answers, iperf, proxy_http, proxy_bulk, relay_http, relay_bulk = free_ports(6)
    server = folder / "answers.cfg"
    server.write_text(HAPROXY + ANSWERS.format(port=answers))
    proxy = folder / "proxy.cfg"
    proxy.write_text(
        HAPROXY + _FORWARD.format(public=proxy_http, target=answers) + _FORWARD.format(public=proxy_bulk, target=iperf)
    )
    page = folder / "page"
    write_page(page)
    stack.enter_context(process(["haproxy", "-db", "-f", str(server)]))
    stack.enter_context(process(["iperf3", "-s", "-p", str(iperf)]))
    haproxy = stack.enter_context(process(["haproxy", "-db", "-f", str(proxy)]))
    worker = stack.enter_context(
        process(
            [sys.executable, str(WORKER), str(page), f"{relay_http}={answers}", f"{relay_bulk}={iperf}"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    )
    for port in (answers, iperf, proxy_http, relay_http):
        wait_for(port)
    return {
        "direct": Side(0, answers, iperf),
        "haproxy": Side(haproxy, proxy_http, proxy_bulk),
        "relay": Side(worker, relay_http, relay_bulk),
    }


def write_page(path: Path) -> None:
    deadline_page.create(path)
    writer = deadline_page.PageWriter(path)
    term = deadline_page.Term(token=1, epoch=1)
    writer.write(deadline_page.Page(0, 1, 1, 0, clock.boot_id(), clock.FOREVER, clock.FOREVER, {"app:bench": term}))
    writer.close()


@contextlib.contextmanager
def process(command: list[str], env: dict[str, str] | None = None) -> Iterator[int]:
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(3)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in socks]


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def run(figure: str, side: Side, seconds: int) -> tuple[float, float]:
    """(rate, CPU seconds of the forwarder for one unit of it)."""
    before = _cpu_s(side.pid)
    rate = _bulk(side.bulk, seconds) if figure == "bulk" else _requests(side.http, seconds, figure == "new_connections")
    return rate, (_cpu_s(side.pid) - before) / (rate * seconds)


def _requests(port: int, seconds: int, close: bool) -> float:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s"]
    output = _output([*command, *(["-H", "Connection: close"] if close else []), f"http://127.0.0.1:{port}/"])
    if errors := re.search(r"Non-2xx.*|Socket errors: (?!connect 0, read 0, write 0, timeout 0).*", output):
        raise RuntimeError(f"wrk on port {port}: {errors[0]}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])  # type: ignore[index]


def _bulk(port: int, seconds: int) -> float:
    report = json.loads(_output(["iperf3", "-c", "127.0.0.1", "-p", str(port), "-t", str(seconds), "-J"]))
    if "sum_received" not in report["end"]:
        raise RuntimeError(f"iperf3 on port {port}: {report.get('error', 'it said nothing of what was received')}")
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9


def _output(command: list[str]) -> str:
    # iperf3's server takes one client at a time and needs a moment after the last.
    for attempt in range(20):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return done.stdout
        time.sleep(0.05 * (attempt + 1))
    raise RuntimeError(f"{command[0]} failed: {done.stdout[-300:]} {done.stderr[-300:]}")


def _cpu_s(pid: int) -> float:
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def summary(figure: str, seen: dict[tuple[str, str], list[tuple[float, float]]], goal: float) -> dict[str, Any]:
    rate = {side: statistics.median(rate for rate, _ in seen[figure, side]) for side in ("relay", "haproxy", "direct")}
    cpu = {side: statistics.median(cpu for _, cpu in seen[figure, side]) for side in ("relay", "haproxy")}
    # Of neighbours in time, so that a load of the host meets both sides.
    pairs = zip(seen[figure, "relay"], seen[figure, "haproxy"], strict=True)
    ratio = statistics.median(ours / theirs for (ours, _), (theirs, _) in pairs)
    return {
        **{side: round(value, 2) for side, value in rate.items()},
        "unit": UNITS[figure],
        "ratio": round(ratio, 3),
        "goal": goal,
        "reached": ratio >= goal,
        "cpu_us": {side: round(value * 1e6, 1) for side, value in cpu.items()},
        "rounds": len(seen[figure, "relay"]),
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{'':16}{'direct':>10}{'HAProxy':>10}{'relay':>10}  {'unit':12}{'ratio':>7}{'goal':>6}   CPU us each (HAProxy, relay)"
    ]
    for figure, row in result.items():
        cpu = f"{row['cpu_us']['haproxy']}, {row['cpu_us']['relay']}"
        rates = "".join(f"{row[side]:>10.{1 if row['unit'] == 'Gb/s' else 0}f}" for side in ("direct", "haproxy", "relay"))
        lines.append(f"{figure:16}{rates}  {row['unit']:12}{row['ratio']:>7}{row['goal']:>6}   {cpu}")
    return "\n".join(lines)


if __name__ == "__main__":
    if missing():
        sys.exit(f"not installed: {', '.join(missing())}")
    outcome = measure()
    print(table(outcome))
    print(json.dumps(outcome, indent=2))

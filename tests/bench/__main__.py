"""`make bench`: every figure with its target, as a table and as JSON in `bench-results/`. `python -m tests.bench PART...` picks."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARTS = ("kernel", "bus", "store", "relay", "tunnel", "app", "cluster", "failover")


@dataclass(frozen=True)
class Figure:
    """One row. `reached(value)` decides; `target` is what people read."""

    part: str
    what: str
    value: Callable[[dict[str, Any]], float | None]
    unit: str
    target: str
    reached: Callable[[float, dict[str, Any]], bool]


def _at_most(limit: float) -> Callable[[float, dict[str, Any]], bool]:
    return lambda value, _: value <= limit


def _at_least(limit: float) -> Callable[[float, dict[str, Any]], bool]:
    return lambda value, _: value >= limit


FIGURES = (
    Figure("kernel", "kill -9 of a module to ready, median", lambda r: r["kill_to_ready_median_ms"], "ms", "<= 20", _at_most(20)),
    Figure("kernel", "times faster than runit", lambda r: r["times_faster_than"].get("runit"), "x", ">= 5", _at_least(5)),
    Figure("kernel", "times faster than supervisord", lambda r: r["times_faster_than"].get("supervisord"), "x", ">= 5", _at_least(5)),
    Figure("kernel", "SIGSTOP to replaced and ready, worst module", lambda r: r["stop_to_ready_max_s"], "s", "<= 1.5", _at_most(1.5)),
    Figure("kernel", "all modules killed to all ready", lambda r: r["all_killed_to_all_ready_ms"], "ms", "<= 300", _at_most(300)),
    Figure("kernel", "cold start to ready", lambda r: r["cold_start_s"], "s", "<= 1.0", _at_most(1.0)),
    Figure("kernel", "memory of the tree, PSS", lambda r: r["pss_total_mib"], "MiB", "<= 130", _at_most(130)),
    Figure("kernel", "memory of the supervisor, PSS", lambda r: r["pss_mib"]["supervisor"], "MiB", "<= 15", _at_most(15)),
    Figure("kernel", "idle CPU of all", lambda r: r["idle_cpu_percent"], "% of a core", "<= 2", _at_most(2)),
    Figure("bus", "event latency, 8 subscribers, 1000/s, p50", lambda r: r["latency_p50_us"], "us", "<= 450", _at_most(450)),
    Figure(
        "bus", "throughput, 8 subscribers, 100 B", lambda r: r["throughput_per_s"], "/s each", ">= 25000 or >= 0.8 x NATS",
        lambda value, r: value >= 25_000 or r.get("ratio_to_nats", 0) >= 0.8,
    ),
    Figure("bus", "the same, ratio to NATS", lambda r: r.get("ratio_to_nats"), "x", "", lambda _value, _r: True),
    Figure("bus", "command round trip, p50", lambda r: r["round_trip_p50_us"], "us", "<= 300", _at_most(300)),
    Figure("bus", "commands, 32 in flight", lambda r: r["in_flight_32_per_s"], "/s", ">= 15000", _at_least(15_000)),
    Figure("store", "commit, ratio to a bare SQLite FULL commit", lambda r: r["commit_ratio"], "x", "<= 1.3", _at_most(1.3)),
    Figure("store", "reading a document", lambda r: r["read_us"], "us", "<= 20", _at_most(20)),
    Figure("store", "replay of 10,000 entries", lambda r: r["replay_s"], "s", "<= 0.5", _at_most(0.5)),
    Figure("relay", "keep-alive, ratio to HAProxy", lambda r: r["keep_alive"]["ratio"], "x", ">= 0.8", _at_least(0.8)),
    Figure("relay", "new connections, ratio to HAProxy", lambda r: r["new_connections"]["ratio"], "x", ">= 0.8", _at_least(0.8)),
    Figure("relay", "bulk, ratio to HAProxy", lambda r: r["bulk"]["ratio"], "x", ">= 1.0", _at_least(1.0)),
    Figure("tunnel", "keep-alive, ratio to HAProxy, mutual TLS", lambda r: r["keep_alive"]["ratio"], "x", ">= 0.8", _at_least(0.8)),
    Figure("tunnel", "new connections, ratio to HAProxy", lambda r: r["new_connections"]["ratio"], "x", ">= 0.6", _at_least(0.6)),
    Figure("tunnel", "bulk, ratio to HAProxy", lambda r: r["bulk"]["ratio"], "x", ">= 0.8", _at_least(0.8)),
    Figure("tunnel", "latency added to local, p50", lambda r: r["latency"]["added_p50_ms"], "ms", "<= 0.3", _at_most(0.3)),
    Figure("app", "apps install to the first 200", lambda r: r["install_to_first_200_s"], "s", "<= 1.5", _at_most(1.5)),
    Figure("cluster", "leader's machine lost to a write, p50", lambda r: r["machine_lost"]["p50_s"], "s", "<= 3.3", _at_most(3.3)),
    Figure("cluster", "the same, worst", lambda r: r["machine_lost"]["worst_s"], "s", "<= 4.5", _at_most(4.5)),
    Figure("cluster", "tree killed, machine alive, worst", lambda r: max(r["tree_killed_s"]), "s", "<= 1.0", _at_most(1.0)),
    Figure("cluster", "clean stop, worst", lambda r: max(r["clean_stop_s"]), "s", "<= 0.5", _at_most(0.5)),
    Figure("cluster", "switchover, 50 writes/s, gap, worst", lambda r: r["switchover"]["gap_worst_ms"], "ms", "<= 100", _at_most(100)),
    Figure("cluster", "switchover, errors", lambda r: r["switchover"]["errors"], "", "0", _at_most(0)),
    Figure("cluster", "commit, ratio to a bare etcd transaction", lambda r: r["commit"]["ratio_p50"], "x", "<= 1.5", _at_most(1.5)),
    Figure("cluster", "16 writers, throughput, ratio to bare", lambda r: r["commit"]["ratio_throughput_16"], "x", ">= 0.7", _at_least(0.7)),
    Figure("cluster", "commit to verified on both followers, p50", lambda r: r["verified"]["p50_ms"], "ms", "<= 10", _at_most(10)),
    Figure("cluster", "the same, p99", lambda r: r["verified"]["p99_ms"], "ms", "<= 50", _at_most(50)),
    Figure("cluster", "a lost hint, found by the poll, worst", lambda r: max(r["lost_hint_s"], default=None), "s", "<= 1.2", _at_most(1.2)),
    Figure("cluster", "a node joins with 10,000 revs", lambda r: r["join"]["join_s"], "s", "<= 10", _at_most(10)),
    Figure("cluster", "memory of a member over a node alone, PSS", lambda r: r["join"]["pss_extra_mib"], "MiB", "<= 60", _at_most(60)),
    Figure("failover", "app's machine lost to its first answer, p50", lambda r: r["machine_lost"]["p50_s"], "s", "<= 3.5", _at_most(3.5)),
    Figure("failover", "the same, worst", lambda r: r["machine_lost"]["worst_s"], "s", "<= 5", _at_most(5)),
    Figure("failover", "tree killed, machine alive, worst", lambda r: max(r["tree_killed_s"]), "s", "<= 1.5", _at_most(1.5)),
    Figure("failover", "app crash to its first answer, worst", lambda r: max(r["app_crash_s"]), "s", "<= 0.5", _at_most(0.5)),
    Figure("failover", "planned move, longest answer", lambda r: max(r["planned_move"]["longest_s"]), "s", "<= 1", _at_most(1)),
    Figure("failover", "planned move, failed requests", lambda r: r["planned_move"]["failed"], "", "0", _at_most(0)),
    Figure("failover", "50 apps on the lost machine, all served", lambda r: r["many_lost"]["seconds"], "s", "<= 13", _at_most(13)),
)  # fmt: skip


def main(parts: list[str]) -> int:
    unknown = set(parts) - set(PARTS)
    if unknown:
        print(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    results: dict[str, dict[str, Any]] = {}
    for part in parts or PARTS:
        print(f"measuring {part} ...", file=sys.stderr, flush=True)
        results[part] = importlib.import_module(f"tests.bench.{part}").measure()
    missed = _print_table(results)
    print(f"written to {_write(results)}")
    return 1 if missed else 0


def _print_table(results: dict[str, dict[str, Any]]) -> int:
    missed = 0
    print(f"{'figure':<48} {'measured':>16}  {'target':<26}")
    for figure in FIGURES:
        if figure.part not in results:
            continue
        value = figure.value(results[figure.part])
        if value is None:
            print(f"{figure.what:<48} {'peer absent':>16}  {figure.target:<26}")
            continue
        reached = figure.reached(value, results[figure.part])
        missed += not reached
        mark = "" if not figure.target else "reached" if reached else "MISSED"
        print(f"{figure.what:<48} {value:>10.4g} {figure.unit:<11} {figure.target:<26} {mark}")
    return missed


def _write(results: dict[str, dict[str, Any]]) -> Path:
    folder = Path("bench-results")
    folder.mkdir(exist_ok=True)
    file = folder / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    host = {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    file.write_text(json.dumps({"host": host, "results": results}, indent=2))
    return file


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

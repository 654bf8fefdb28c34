"""`python -m tests.sim --seed N`: one schedule again; `--runs N`: many, counted."""

from __future__ import annotations

import argparse
import time

from tests.sim.cluster import run
from tests.sim.rules import ALL, OFF
from tests.sim.scenario import play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--rules", choices=["all", *OFF], default="all", help="`all`, or the one that is switched off")
    parser.add_argument("--profile", choices=["fast", "balanced", "patient"], default="fast")
    parser.add_argument("--whole-stalls", action="store_true", help="also stall whole machines (promise 4)")
    parser.add_argument("--restores", action="store_true", help="also restore a backup of the store, half-way")
    parser.add_argument("--scenario", help="play one of tests/sim/scenarios instead, and print what happens")
    asked = parser.parse_args()
    if asked.scenario:
        print(play(asked.scenario), end="")
        return 0
    rules = OFF.get(asked.rules, ALL)
    began = time.perf_counter()
    takeovers = violations = excused = writes = 0
    for seed in range(asked.seed, asked.seed + asked.runs):
        result = run(seed, rules, profile=asked.profile, whole_stalls=asked.whole_stalls, restores=asked.restores)
        takeovers += result.takeovers
        writes += result.writes
        excused += result.excused
        violations += bool(result.violations)
        if result.violations and violations <= 10:
            print(f"seed {seed}:", *result.violations, sep="\n  ")
    print(
        f"{rules.says}: {violations} bad runs of {asked.runs}, {takeovers} takeovers, {writes} writes, {excused} excused, "
        f"{time.perf_counter() - began:.1f} s"
    )
    return 1 if violations else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""A cluster for a person. Usage: python -m tests.bed [--nodes N] [--alone] | --clean"""

from __future__ import annotations

import argparse
import signal
import sys

from tests.bed import forming, remains
from tests.bed.apps import could_lead, home
from tests.bed.cluster import Cluster
from tests.bed.machine import API_PORT, Machine
from tests.node import PASSWORD, PICCOLOD, until

APPS = ("hello", "hola")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bed", description="Several machines on this one, until Ctrl-C.")
    parser.add_argument("--nodes", type=int, default=3, help="how many machines (3)")
    parser.add_argument("--alone", action="store_true", help="machines that are alone, instead of one cluster")
    parser.add_argument("--clean", action="store_true", help="remove every trace of beds that died, and end")
    options = parser.parse_args()
    cleaned = remains.clean()
    for line in cleaned:
        print(f"removed {line}")
    if options.clean:
        return 0
    if not 1 <= options.nodes <= 99:
        parser.error("--nodes: 1 to 99")
    # A closed terminal and `kill` end it as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with Cluster(options.nodes) as cluster:
            print(f"starting {options.nodes} machines ...", flush=True)
            cluster.start()
            first = cluster.machines[0]
            cluster.load_demo_image(*(cluster.machines if options.alone else (first,)))
            if options.alone:
                cluster.unlock()
            else:
                print("making one cluster of them ...", flush=True)
                forming.form(cluster, profile="auto")
            for name in APPS:
                first.install(first.demo_manifest(name), running=options.alone)
            describe(cluster, alone=options.alone)
            print("Ctrl-C ends them and removes every trace.", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        print("every trace is removed")
    return 0


def describe(cluster: Cluster, *, alone: bool) -> None:
    print(f"Each machine is unlocked; the password is: {PASSWORD}\n")
    for machine in cluster.machines:
        print(f"{machine.name}  http://{machine.address}:{API_PORT}")
        print(f"    {_ctl(machine)} status")
        print(f"    a shell inside: nsenter --target {machine.init} --all --wdns=/")
        print(f"    its log:        {machine.output}")
    first = cluster.machines[0]
    print()
    for name in APPS:
        runs_on = until(lambda name=name: home(cluster, name), f"{name} is led", 30)  # type: ignore[misc]
        whose = "it alone answers" if alone else "each machine answers"
        print(f"The app `{name}` runs on {runs_on.name}, {whose} for it: http://{first.address}:{first.public_port(name)}")
    if not alone and len(cluster.machines) > 2:
        show_a_loss(cluster, APPS[0])


def show_a_loss(cluster: Cluster, name: str) -> None:
    lost = home(cluster, name)
    assert lost is not None
    other = next(machine for machine in cluster.machines if machine is not lost)
    until(lambda: all(could_lead(each, lost, name) for each in cluster.machines), f"each could run {name}", 30)
    print(
        f"\nTake the power from {lost.name}, and ask another machine for `{name}`: it answers after some 3 seconds, from its own."
    )
    print(f"    kill -9 {lost.init}; time curl --max-time 15 http://{other.address}:{other.public_port(name)}/")
    print("Then see where the apps run now, why, and how long their clients waited for what:")
    print(f"    {_ctl(other)} apps list; {_ctl(other)} why {name}")


def _ctl(machine: Machine) -> str:
    return f"{PICCOLOD.with_name('piccoloctl')} --socket {machine.run}/api.sock"


if __name__ == "__main__":
    sys.exit(main())

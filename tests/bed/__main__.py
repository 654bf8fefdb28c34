"""A cluster for a person. Usage: python -m tests.bed [--nodes N] [--alone] | --clean"""

from __future__ import annotations

import argparse
import signal
import sys

from tests.bed import forming, remains
from tests.bed.cluster import Cluster
from tests.bed.machine import API_PORT
from tests.node import PASSWORD, PICCOLOD


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
            cluster.load_demo_image()
            if options.alone:
                cluster.unlock()
            else:
                print("making one cluster of them ...", flush=True)
                forming.form(cluster, profile="auto")
            first = cluster.machines[0]
            first.install(first.demo_manifest())
            describe(cluster)
            port = first.public_port("hello")
            print(f"\nThe app `hello` runs on {first.name}, and each answers for it: http://{first.address}:{port}")
            if not options.alone and options.nodes > 2:
                other = cluster.machines[1]
                print("Lose its machine, and look at another one:")
                print(f"    kill -9 {first.init}; curl --max-time 15 http://{other.address}:{port}/")
            print("Ctrl-C ends them and removes every trace.", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        print("every trace is removed")
    return 0


def describe(cluster: Cluster) -> None:
    ctl = PICCOLOD.with_name("piccoloctl")
    print(f"Each machine is unlocked (password: {PASSWORD}) and has the image of deploy/demo/app.yaml.\n")
    for machine in cluster.machines:
        print(f"{machine.name}  http://{machine.address}:{API_PORT}")
        print(f"    {ctl} --socket {machine.run}/api.sock status")
        print(f"    a shell inside: nsenter --target {machine.init} --all --wdns=/")
        print(f"    its log:        {machine.output}")


if __name__ == "__main__":
    sys.exit(main())

"""Apps of a cluster: where each is led, whether it runs there, and whether the machines lead clients to it."""

from __future__ import annotations

import http.client
from contextlib import suppress

from tests.bed.cluster import Cluster
from tests.bed.forming import asked, wait_leader
from tests.bed.machine import Machine
from tests.node import Failed, until


def installed(bed: Cluster, name: str, extra: str = "", *, serves: bool = True) -> int:
    leading = wait_leader(bed)
    port = leading.install(leading.demo_manifest(name, extra), running=False)["listeners"][0]["public_port"]
    until(lambda: home(bed, name), f"{name} is led", 20)
    for machine in bed.machines if serves else ():
        led_there(machine, name, port, f"{machine.name} answers for {name}")
    return int(port)


def home(bed: Cluster, name: str) -> Machine | None:
    """Where it is led, as that node says itself."""
    for machine in bed.machines:
        if machine.is_on and machine.process is not None:
            reply = asked(machine, "GET", f"/leadership/app:{name}")
            if reply.status == 200 and reply.json["role"] == "leader":
                return machine
    return None


def answers(machine: Machine, port: int) -> bool:
    with suppress(OSError, http.client.HTTPException):
        return machine.fetch(port).status == 200
    return False


def led_there(machine: Machine, name: str, port: int, what: str, within_s: float = 20) -> None:
    """A client of this machine is served. Raises Failed with what the machine knows of the app."""
    try:
        until(lambda: answers(machine, port), what, within_s)
    except Failed as failed:
        asked_for = (
            ("apps", "show", name), ("routes", "list", "-o", "wide"), ("leaders", "show", name), ("health",), ("nodes", "list"),
            ("modules", "logs", "apps"), ("modules", "logs", "router.0"), ("modules", "logs", "consensus"),
        )  # fmt: skip
        told = (f"$ {' '.join(each)}\n{machine.ctl(*each).stdout[-3000:]}" for each in asked_for)
        raise Failed("\n".join([str(failed), *told])) from failed


def runs(machine: Machine, name: str) -> bool:
    return machine.podman("ps", "--quiet", "--filter", f"name=^piccolo-{name}$").strip() != ""


def could_lead(machine: Machine, by: Machine, name: str) -> bool:
    found = asked(by, "GET", f"/leadership/app:{name}").json["candidates"]
    return any(each["node"] == machine.name and each["eligible"] for each in found)

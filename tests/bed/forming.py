"""Machines become one cluster, by the commands that a person types."""

from __future__ import annotations

import http.client
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.bed.cluster import Cluster
from tests.bed.machine import Machine
from tests.node import PASSWORD, Failed, Reply, UnixConnection, until


def form(cluster: Cluster, profile: str = "fast") -> None:
    """Every machine is on; the first one founds the cluster, the others join it one by one, and each is unlocked."""
    first, *others = cluster.machines
    found(first, profile)
    for machine in others:
        join(machine, first)


def found(first: Machine, profile: str = "fast") -> None:
    first.unlock()
    said(first, "cluster", "init", "--profile", profile)


def join(machine: Machine, by: Machine, *options: str) -> None:
    """Lets a machine in by a member that leads, or knows who does, and unlocks it."""
    said(machine, "cluster", "join", by.address, "--token", token(by, *options), *options, timeout_s=130)
    if "--witness" not in options:
        unlock(machine)


def token(member: Machine, *options: str) -> str:
    return said(member, "cluster", "tokens", "create", *options).strip()


def unlock(machine: Machine) -> None:
    """Once the cluster's keyset has come."""
    until(lambda: asked(machine, "GET", "/crypto/status").json["initialized"], f"{machine.name} has the cluster's keyset", 20)
    opened(machine)


def said(machine: Machine, *command: str, timeout_s: float = 90.0) -> str:
    """What `piccoloctl` printed on a machine. Raises Failed when it did not end well."""
    done = machine.ctl(*command, timeout_s=timeout_s)
    if done.returncode != 0:
        raise Failed(f"{machine.name}: piccoloctl {' '.join(command)}: {done.returncode}: {done.stderr}\n{machine.tail()}")
    return done.stdout


# --- what they are together


def members(machine: Machine) -> dict[str, dict[str, Any]]:
    """The cluster's members as a machine sees them; empty while it cannot say."""
    with suppress(OSError, http.client.HTTPException):  # its api may be restarting
        reply = machine.api("GET", "/cluster", timeout_s=5)
        return {each["node"]: each for each in reply.json["members"]} if reply.status == 200 else {}
    return {}


def leader(cluster: Cluster, *but: Machine) -> Machine | None:
    """The machine that answers load balancers as the kernel's leader; None when none does."""
    for machine in cluster.machines:
        if machine.is_on and machine not in but and machine.process is not None and _leads(machine):
            return machine
    return None


def wait_leader(cluster: Cluster, *but: Machine, within_s: float = 20.0) -> Machine:
    found: Machine = until(lambda: leader(cluster, *but), "a leader of the kernel", within_s)
    return found


def _leads(machine: Machine) -> bool:
    try:
        return machine.api("GET", "/leader/kernel", timeout_s=1).status == 200
    except (OSError, http.client.HTTPException):
        return False


def leads_etcd(machine: Machine) -> bool:
    """Whether its member of etcd leads the others: by the health socket, which needs no certificate."""
    connection = UnixConnection(machine.run / "etcd-health:0", timeout=2)
    try:
        connection.request("GET", "/metrics")
        return b"\netcd_server_is_leader 1\n" in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_etcd_leader(cluster: Cluster, within_s: float = 20.0) -> Machine:
    found: Machine = until(
        lambda: next((each for each in cluster.machines if each.is_on and leads_etcd(each)), None),
        "a member of etcd that leads", within_s, 0.1,
    )  # fmt: skip
    return found


def switch_over(cluster: Cluster, to: Machine) -> None:
    """Hands the kernel to a machine once it asks for it, unless it leads already."""
    if leader(cluster) is not to:
        until(lambda: could_lead(to, to), f"{to.name} could lead", 20, 0.1)
        said(to, "leaders", "switchover", "kernel", "--to", to.name)
        until(lambda: leader(cluster) is to, f"{to.name} leads", 20)


def could_lead(machine: Machine, by: Machine) -> bool:
    """Whether it would take the kernel over, as another one or it itself sees it."""
    with suppress(OSError, http.client.HTTPException, AssertionError):
        candidates = by.get("/leadership/kernel")["candidates"]
        return any(each["node"] == machine.name and each["eligible"] for each in candidates)
    return False


# --- what a machine says while its modules come and go


def asking(work: Callable[[], object]) -> threading.Thread:
    """Somebody asks for it, and may never hear how it ended."""

    def ask() -> None:
        with suppress(OSError, http.client.HTTPException, subprocess.TimeoutExpired):
            work()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


def is_alone(machine: Machine) -> bool:
    """A node alone, and none of its modules takes it for a member any more."""
    reply = asked(machine, "GET", "/cluster")
    return bool(reply.status == 200 and reply.json["mode"] == "alone" and machine.all_ready())


def asked(machine: Machine, method: str, path: str, body: Any = None) -> Reply:
    """An answer: the api of a follower is restarted by what is written, and by who recovers or leaves a cluster."""

    def answer() -> Reply | None:
        with suppress(OSError, http.client.HTTPException):
            return machine.api(method, path, body, timeout_s=10)
        return None

    reply: Reply = until(answer, f"{machine.name} answers {method} {path}", 20, 0.2)
    return reply


def acknowledged(machine: Machine, title: str) -> int:
    """The rev of the first write that a machine acknowledges."""

    def rev() -> int:
        reply = asked(machine, "PUT", "/settings", {"title": title})
        return int(reply.headers["piccolo-rev"]) if reply.status == 200 else 0

    found: int = until(rev, f"{machine.name} acknowledges a write", 30, 0.2)
    return found


def digest(machine: Machine) -> tuple[int, str]:
    """Where its verified log ends."""
    revision = asked(machine, "GET", "/store/revision").json
    return revision["rev"], revision["digest"]


def trouble(machine: Machine) -> str:
    """What keeps its consensus from its work."""
    health: dict[str, Any] = asked(machine, "GET", "/health/detail").json
    return str(health["components"].get("consensus", {}).get("reason", ""))


def opened(machine: Machine) -> None:
    """Unlocked by its own keyset, whatever its cluster does."""
    until(
        lambda: asked(machine, "POST", "/crypto/unlock", {"password": PASSWORD}).status == 200,
        f"{machine.name} is open",
        30,
        0.3,
    )

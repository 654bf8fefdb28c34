"""Plain etcd processes, one a machine, for tests that need a store before the cluster can be formed. No TLS: the bed is closed."""

from __future__ import annotations

import base64
import json
import urllib.request
from contextlib import suppress
from typing import Any

from tests.bed.cluster import Cluster
from tests.bed.machine import Entered, Machine
from tests.node import until

CLIENT_PORT, PEER_PORT = 2379, 2380


class Etcd:
    """An ensemble over every machine of a cluster, each of which is on."""

    def __init__(self, cluster: Cluster, heartbeat_ms: int = 100, election_ms: int = 1000) -> None:
        self._machines = cluster.machines
        self._timing = [f"--heartbeat-interval={heartbeat_ms}", f"--election-timeout={election_ms}"]
        self._processes: dict[str, Entered] = {}

    def start(self, *machines: Machine) -> None:
        """All, or these: again after a loss of power, with what is on their disks."""
        for machine in machines or self._machines:
            self._processes[machine.name] = machine.spawn("etcd", *self._arguments(machine))

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait(10)
        self._processes.clear()

    def leader(self, *machines: Machine) -> Machine | None:
        """The machine that leads, as these machines (all) see it; None while they do not agree on one."""
        answers = [status(machine) for machine in machines or self._machines]
        leaders = {answer.get("leader", "0") for answer in answers}
        if len(leaders) != 1 or leaders == {"0"}:
            return None
        ids = {status(machine).get("header", {}).get("member_id"): machine for machine in self._machines}
        return ids.get(leaders.pop())

    def wait_leader(self, *machines: Machine, within_s: float = 10.0) -> Machine:
        found: Machine = until(lambda: self.leader(*machines), "an etcd leader that all of them name", within_s)
        return found

    def _arguments(self, machine: Machine) -> list[str]:
        peers = ",".join(f"{one.name}=http://{one.address}:{PEER_PORT}" for one in self._machines)
        client, peer = f"http://{machine.address}:{CLIENT_PORT}", f"http://{machine.address}:{PEER_PORT}"
        return [
            f"--name={machine.name}", f"--data-dir={machine.state_dir.with_name('etcd')}", "--log-level=warn",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={peers}", "--initial-cluster-state=new", *self._timing,
        ]  # fmt: skip


def put(machine: Machine, key: str, value: str, timeout_s: float = 1.0) -> bool:
    """Whether it was acknowledged. False: it may be there or not."""
    return bool(_call(machine, "kv/put", {"key": _encoded(key), "value": _encoded(value)}, timeout_s))


def get(machine: Machine, key: str, timeout_s: float = 1.0) -> str | None:
    """Linearizable. None: no such key, or no answer."""
    found = _call(machine, "kv/range", {"key": _encoded(key)}, timeout_s).get("kvs", [])
    return base64.b64decode(found[0]["value"]).decode() if found else None


def status(machine: Machine) -> dict[str, Any]:
    """Empty when it does not answer."""
    return _call(machine, "maintenance/status", {}, 1.0)


def _call(machine: Machine, path: str, body: dict[str, str], timeout_s: float) -> dict[str, Any]:
    """etcd's JSON gateway (etcd.io/docs/v3.4/dev-guide/api_grpc_gateway)."""
    url = f"http://{machine.address}:{CLIENT_PORT}/v3/{path}"
    with suppress(OSError, ValueError), urllib.request.urlopen(url, json.dumps(body).encode(), timeout_s) as answer:
        document: dict[str, Any] = json.load(answer)
        return document
    return {}


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()

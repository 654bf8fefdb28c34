"""etcd beside a cluster: plain processes, one a machine, for tests that need a store before the cluster can be formed, without
TLS, for the bed is closed; and one of an owner, with TLS, on a computer that is no machine.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import urllib.request
from contextlib import suppress
from typing import Any

from piccolod import etcd_conf
from tests.bed.cluster import Cluster
from tests.bed.machine import Entered, Machine
from tests.bed.network import CLIENT
from tests.etcd import ETCDCTL, Authority
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


class OwnersEtcd:
    """One member, on the client's computer; everybody needs a certificate of its owner. `configure` a machine before it starts."""

    def __init__(self, cluster: Cluster, name: str = "owner", port: int = CLIENT_PORT) -> None:
        self._network = cluster.network
        self._folder = cluster.folder / name
        self._folder.mkdir()
        self.authority = Authority(self._folder / "pki")
        self._address = cluster.network.address(CLIENT)
        self.url = f"https://{self._address}:{port}"
        self._peer_url = f"http://127.0.0.1:{port + 1}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> OwnersEtcd:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        cert, key = self.authority.sign("server", self._address)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._network.inside(
                    CLIENT, "setpriv", "--pdeathsig", "KILL", etcd_conf.program(), "--name=owner", f"--data-dir={self._folder / 'data'}",
                    f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}",
                    f"--listen-peer-urls={self._peer_url}", f"--initial-advertise-peer-urls={self._peer_url}",
                    f"--initial-cluster=owner={self._peer_url}", f"--trusted-ca-file={self.authority.ca}",
                    f"--cert-file={cert}", f"--key-file={key}", "--client-cert-auth", "--log-level=warn",
                ),
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={"PATH": os.environ["PATH"], **etcd_conf.environment()},
            )  # fmt: skip
        until(lambda: self.ctl("get", "-w", "json", "/", check=False), "the owner's etcd answers", 15, 0.2)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def configure(self, machine: Machine) -> None:
        with machine.config_file.open("a") as file:
            file.write(self.section(machine.name))

    def section(self, name: str) -> str:
        """`[etcd]` of a machine's configuration, with a certificate of its own."""
        cert, key = self.authority.sign(name, self._address)
        files = f'ca = "{self.authority.ca}"\ncert = "{cert}"\nkey = "{key}"\n'
        return f'[etcd]\nmode = "external"\nendpoints = ["{self.url}"]\n{files}'

    def ctl(self, *words: str, check: bool = True) -> str:
        """What its owner's etcdctl says."""
        cert, key = self.authority.sign("owner")
        done = subprocess.run(
            self._network.inside(
                CLIENT, ETCDCTL, f"--endpoints={self.url}", f"--cacert={self.authority.ca}", f"--cert={cert}",
                f"--key={key}", *words,
            ),
            env={"PATH": os.environ["PATH"], "ETCDCTL_API": "3"}, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def names(self) -> list[str]:
        """Of all keys."""
        return self.ctl("get", "--prefix", "--keys-only", "/").split()


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

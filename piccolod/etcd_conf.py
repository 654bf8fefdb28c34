"""The member of etcd on this node: what is decided about it, and the command line that this makes. Standard library alone.

`state_dir/cluster/etcd.json` is written by `cluster init` and `cluster join`, read by the supervisor, which runs etcd exactly
where that file is. One field of `Settings` a key:

    {"name": "n1", "peer_url": "https://10.77.0.1:2380", "client_url": "https://10.77.0.1:2379", "token": "piccolo-7f3a",
     "cluster": {"n1": "https://10.77.0.1:2380"}, "state": "new", "heartbeat_ms": 100, "election_ms": 500,
     "ca": "/.../ca.pem", "cert": "/.../node.pem", "key": "/.../node.key"}
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from piccolod import durable
from piccolod.errors import Invalid, Problem, Unavailable
from piccolod.paths import Paths

QUOTA_BYTES: Final = 256 << 20
OWNERS_QUOTA_BYTES: Final = 2 << 30  # etcd's own default
_ELECTION_MOST_MS: Final = 50_000  # more is refused by etcd itself
_STATES: Final = ("new", "existing")
# 3.4 refuses to start on these unless it is told.
_ARCHITECTURES: Final = {"aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}


@dataclass(frozen=True, slots=True)
class Settings:
    """One member. It listens where it says that it is to be found. Without `ca` in the clear."""

    name: str
    peer_url: str
    client_url: str
    token: str  # names the cluster: members of another one are never taken for its own
    cluster: Mapping[str, str] = field(default_factory=dict)  # the members at its first start: name -> peer_url
    state: str = "new"  # of the cluster at its first start: new, or existing
    heartbeat_ms: int = 100
    election_ms: int = 500
    ca: str = ""
    cert: str = ""
    key: str = ""
    quota_bytes: int = QUOTA_BYTES

    @property
    def stall_s(self) -> float:
        """How long it may make no progress. Others elect after one election timeout; then it must not come back as it was."""
        return max(1.2, 2 * self.election_ms / 1000)


def read(file: Path) -> Settings | None:
    """None: no member lives here. Raises Invalid with every mistake of the file, Unavailable for one that cannot be read."""
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"{file}: {error.strerror}", hint="see the disk") from error
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise Invalid(f"{file} is not JSON: {error}") from error
    problems = list(_problems(document)) if isinstance(document, dict) else [Problem("", "must be an object")]
    if problems:
        raise Invalid(
            f"{file} has {len(problems)} mistake(s): {problems[0].path} {problems[0].message}", errors=tuple(problems)
        )
    return Settings(**document)


def write(settings: Settings, file: Path) -> None:
    """Whole or not at all, and on the disk when this returns. Raises OSError."""
    durable.replace(file, json.dumps(dataclasses.asdict(settings), indent=1).encode())


def program() -> str:
    """Where etcd is. Raises Unavailable."""
    found = shutil.which("etcd")
    if found is None:
        raise Unavailable("etcd is not installed", hint="install the package etcd-server")
    return found


def command(etcd: str, settings: Settings, paths: Paths) -> list[str]:
    """Understood by etcd 3.4 to 3.6. Its health socket is relative to the folder that it is started in, `run_dir`."""
    cluster = settings.cluster or {settings.name: settings.peer_url}
    return [
        etcd,
        f"--name={settings.name}",
        f"--data-dir={paths.etcd_data}",
        f"--listen-peer-urls={settings.peer_url}",
        f"--initial-advertise-peer-urls={settings.peer_url}",
        f"--listen-client-urls={settings.client_url}",
        f"--advertise-client-urls={settings.client_url}",
        f"--listen-metrics-urls=unix://{paths.etcd_health.name}",
        f"--initial-cluster={','.join(f'{name}={url}' for name, url in cluster.items())}",
        f"--initial-cluster-state={settings.state}",
        f"--initial-cluster-token={settings.token}",
        f"--heartbeat-interval={settings.heartbeat_ms}",
        f"--election-timeout={settings.election_ms}",
        "--pre-vote",
        f"--quota-backend-bytes={settings.quota_bytes}",
        "--snapshot-count=5000",
        "--auto-compaction-mode=revision",
        "--auto-compaction-retention=10000",
        "--logger=zap",
        *(_tls(settings) if settings.ca else ()),
    ]


def environment(machine: str = "") -> dict[str, str]:
    """GOGC 20 holds etcd at 32 MB where the default takes 47 (measured)."""
    architecture = _ARCHITECTURES.get(machine or os.uname().machine)
    return {"GOGC": "20", **({"ETCD_UNSUPPORTED_ARCH": architecture} if architecture else {})}


def _tls(settings: Settings) -> list[str]:
    sides = ("", "peer-")
    return [
        *(f"--{side}trusted-ca-file={settings.ca}" for side in sides),
        *(f"--{side}cert-file={settings.cert}" for side in sides),
        *(f"--{side}key-file={settings.key}" for side in sides),
        *(f"--{side}client-cert-auth" for side in sides),
    ]


def _problems(document: dict[str, Any]) -> list[Problem]:
    known = {each.name: each for each in dataclasses.fields(Settings)}
    found = [Problem(key, "is not known") for key in document if key not in known]
    for name in ("name", "peer_url", "client_url", "token"):
        if not document.get(name):
            found.append(Problem(name, "is missing"))
    for name, value in document.items():
        kind = int if name.endswith(("_ms", "_bytes")) else dict if name == "cluster" else str
        if name in known and type(value) is not kind:
            found.append(Problem(name, f"must be {kind.__name__}, not {type(value).__name__}"))
    if found:
        return found
    if document.get("state", "new") not in _STATES:
        found.append(Problem("state", "must be new or existing"))
    secure = [bool(document.get(name)) for name in ("ca", "cert", "key")]
    if any(secure) != all(secure):
        found.append(Problem("ca", "ca, cert and key go together"))
    for name in ("peer_url", "client_url"):
        if not document[name].startswith("https://" if all(secure) else "http://"):
            found.append(Problem(name, "must be https with certificates, http without"))
    for name, url in document.get("cluster", {}).items():
        if not isinstance(url, str) or not url or not name:
            found.append(Problem("cluster", f"{name or 'a member'} must have a URL"))
    heartbeat_ms, election_ms = document.get("heartbeat_ms", 100), document.get("election_ms", 500)
    if not 1 <= heartbeat_ms <= _ELECTION_MOST_MS:
        found.append(Problem("heartbeat_ms", f"must be 1 to {_ELECTION_MOST_MS}"))
    if not 5 <= election_ms <= _ELECTION_MOST_MS:
        found.append(Problem("election_ms", f"must be 5 to {_ELECTION_MOST_MS}"))
    if document.get("quota_bytes", QUOTA_BYTES) <= 0:
        found.append(Problem("quota_bytes", "must be more than 0"))
    if election_ms < 5 * heartbeat_ms:
        found.append(Problem("election_ms", "must be at least 5 times heartbeat_ms"))
    return found

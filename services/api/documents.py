"""What only the API says; everything else it shows is a record of `piccolod.protocol`."""

from __future__ import annotations

from typing import Any

import msgspec

from piccolod.protocol.apps import AppDocument
from piccolod.protocol.base import Level
from piccolod.protocol.cluster import Draining
from piccolod.protocol.persistence import CryptoStatus
from services.api.readiness import ComponentHealth


class Live(msgspec.Struct, frozen=True, kw_only=True):
    live: bool


class HealthDetail(msgspec.Struct, frozen=True, kw_only=True):
    ready: bool
    level: Level
    reason: str
    components: dict[str, ComponentHealth]


class ModuleView(msgspec.Struct, frozen=True, kw_only=True):
    """A module as the supervisor sees it."""

    name: str
    pid: int
    instance: str
    state: str
    reason: str
    restarts: int
    uptime_s: float
    rss_bytes: int
    applied_rev: int
    restart_on_kernel_rev_change: bool
    level: str = "OK"
    lag_ms: float = 0.0
    warnings: tuple[str, ...] = ()


class ModuleLog(msgspec.Struct, frozen=True, kw_only=True):
    lines: tuple[str, ...]


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """Why a process ended, with its last words."""

    module: str
    at_ms: int
    pid: int
    instance: str
    reason: str
    exit_code: int | None
    signal: int | None
    uptime_s: float
    planned: bool
    log: tuple[str, ...]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One document for one screen. `missing` says which parts could not be asked, and why."""

    node: str
    name: str
    address: str
    cluster: str | None
    role: str
    locked: bool
    initialized: bool
    rev: int
    health: str
    ready: bool
    reason: str
    modules: tuple[ModuleView, ...]
    apps: tuple[AppDocument, ...]
    missing: dict[str, str]


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    """`csrf` goes back in the header X-CSRF-Token with every change that a cookie authorises."""

    user: str
    kind: str
    scopes: tuple[str, ...]
    expires_ms: int
    csrf: str


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    scopes: tuple[str, ...]
    created_ms: int
    expires_ms: int
    created_by: str


class NewToken(msgspec.Struct, frozen=True, kw_only=True):
    """`token` is shown this once."""

    id: str
    name: str
    scopes: tuple[str, ...]
    expires_ms: int
    token: str


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """`lag`: revs behind the node that has most. `voter`: whether it has a vote in etcd.

    `deadline_s`: seconds left to D_hard of its session; null: it never runs out. `drain`: null where it is not drained.
    """

    name: str
    id: str
    address: str
    state: str
    role: str
    rpc: str
    api_url: str
    voter: bool
    leads_kernel: bool
    epoch: int
    rev: int
    lag: int
    deadline_s: float | None
    drain: Draining | None = None


class SecretView(msgspec.Struct, frozen=True, kw_only=True):
    """A secret without its value, which never comes back."""

    name: str
    updated_ms: int
    size_bytes: int


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    resource: str
    node: str
    epoch: int


class RouteView(msgspec.Struct, frozen=True, kw_only=True):
    """One listener over all router workers; the counters are sums."""

    app: str
    listener: str
    mode: str
    public_port: int
    target: str
    epoch: int
    reason: str
    connections: int
    total_connections: int
    refused: int
    bytes_in: int
    bytes_out: int


class LockView(CryptoStatus, frozen=True, kw_only=True):
    """`still_running`: apps that did not stop in time. `warning`: why it is not known what still runs, or empty."""

    still_running: tuple[str, ...] = ()
    warning: str = ""


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """The recovery words, shown this once."""

    words: str


JsonObject = dict[str, Any]

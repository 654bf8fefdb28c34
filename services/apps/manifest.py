"""The manifest `piccolo/v1`: every field that an app can have, and its meaning.

These structs are the reference: the reader takes names, types and limits from them, and the JSON Schema for editors is
generated from them. A field is here when this version honours it; what is known but not built is in `later.py` and refused.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from piccolod.units import parse_duration, parse_size

RESERVED_NAMES: Final = frozenset({"api", "www", "admin", "root", "system", "piccolo", "validate"})

_T = TypeVar("_T")


def _text(pattern: str, must: str, description: str = "", **more: Any) -> Meta:
    """Text that matches `pattern` as a whole."""
    return Meta(pattern=f"^(?:{pattern})$", description=description or must, extra={"must": must}, **more)


_LABEL: Final = r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?"
_LABEL_MUST: Final = "must be lowercase letters, digits and hyphens, begin with a letter, not end with a hyphen, at most 50"

AppName = Annotated[str, _text(_LABEL, _LABEL_MUST, "Names the app everywhere.")]
PartName = Annotated[str, _text(_LABEL, _LABEL_MUST, "Names a part of the app.")]
NodeName = Annotated[
    str, _text(r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?", "must be a node's name: lowercase letters, digits, hyphens, at most 50")
]
SecretName = Annotated[
    str, _text(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?", "must be lowercase letters, digits, `.`, `_` and `-`")
]
EnvironmentName = Annotated[
    str, _text(r"[A-Za-z_][A-Za-z0-9_]{0,254}", "must be letters, digits and `_`, not begin with a digit")
]
EnvironmentValue = Annotated[str, Meta(max_length=32768, extra={"check": "no_nul"})]
Image = Annotated[
    str,
    Meta(
        max_length=512,
        description="Tag or digest, as localhost/notes:1 or registry.example/redis@sha256:...",
        extra={"check": "image"},
    ),
]
Size = Annotated[
    str,
    Meta(
        pattern=r"^\d+(\.\d+)?(B|[KMGT]i?B)$",
        description="A size above zero, as 512MiB or 10GB.",
        extra={"check": "size"},
    ),
]
Duration = Annotated[
    str,
    Meta(
        pattern=r"^\d+(\.\d+)?(ms|s|m|h|d)$",
        description="A duration, as 250ms, 5s or 2m.",
        extra={"check": "duration"},
    ),
]
ContainerPath = Annotated[
    str,
    Meta(
        max_length=1024,
        pattern="^/",
        description="An absolute, normalised path in the container; not /, and nothing in /proc, /sys or /dev.",
        extra={"check": "container_path"},
    ),
]
UrlPath = Annotated[
    str, Meta(max_length=1024, pattern="^/", description="A path of the app, as /health.", extra={"check": "url_path"})
]
Argument = Annotated[str, Meta(max_length=32768, extra={"check": "no_nul"})]
Command = Annotated[tuple[Argument, ...], Meta(min_length=1, max_length=256)]
Port = Annotated[int, Meta(ge=1, le=65535)]


class AppType(StrEnum):
    USER = "user"
    SYSTEM = "system"


class Pull(StrEnum):
    MISSING = "missing"
    NEVER = "never"
    ALWAYS = "always"


class Policy(StrEnum):
    LEADER_ONLY = "leader_only"
    FOLLOWER_PROXY = "follower_proxy"
    ALWAYS_ON = "always_on"


class Flow(StrEnum):
    TCP = "tcp"
    TLS = "tls"


class Protocol(StrEnum):
    RAW = "raw"
    HTTP = "http"
    WEBSOCKET = "websocket"


class ClientIp(StrEnum):
    NONE = "none"
    PROXY_V2 = "proxy-v2"
    XFF = "xff"


class Access(StrEnum):
    ALLOW = "allow"
    DENY = "deny"


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all parts of a manifest have in common."""


class Build(_Part, frozen=True, kw_only=True):
    """An image made here from a Containerfile; it can copy nothing, as there is no folder beside it."""

    containerfile: Annotated[str, Meta(min_length=1, max_length=65536)]


class Secret(_Part, frozen=True, kw_only=True):
    """One of `file` and `env`. A file can be kept from processes of the app; an environment variable is seen by all of them."""

    name: SecretName
    file: ContainerPath | None = None
    env: EnvironmentName | None = None


class Cluster(_Part, frozen=True, kw_only=True):
    """Where the app runs, and what its followers do. `prefer`: the best node first; all that are not named come after."""

    policy: Policy = Policy.FOLLOWER_PROXY
    prefer: Annotated[tuple[NodeName, ...], Meta(max_length=16)] = ()
    never: Annotated[tuple[NodeName, ...], Meta(max_length=16)] = ()
    failback: Literal["start_only"] = "start_only"
    on_store_loss: Literal["stop"] = "stop"


class Listener(_Part, frozen=True, kw_only=True):
    """A port that the app listens on, and the public port that leads to it."""

    name: PartName
    guest_port: Port
    flow: Flow = Flow.TCP
    protocol: Protocol = Protocol.RAW
    public_port: Port | Literal["auto"] = "auto"
    client_ip: ClientIp = ClientIp.NONE
    hold: Duration = "10s"

    @property
    def hold_s(self) -> float:
        return parse_duration(self.hold)


class PersistentVolume(_Part, frozen=True, kw_only=True):
    """An encrypted folder that outlives the container."""

    container: ContainerPath
    size_limit: Size | None = None
    replicate: Literal["off"] = "off"

    @property
    def size_limit_bytes(self) -> int:
        return parse_size(self.size_limit) if self.size_limit else 0


class TemporaryVolume(_Part, frozen=True, kw_only=True):
    """A folder in memory, empty at each start."""

    container: ContainerPath
    size_limit: Size = "64MiB"

    @property
    def size_limit_bytes(self) -> int:
        return parse_size(self.size_limit)


class Storage(_Part, frozen=True, kw_only=True):
    persistent: dict[PartName, PersistentVolume] = {}
    temporary: dict[PartName, TemporaryVolume] = {}


class Filesystem(_Part, frozen=True, kw_only=True):
    read_only_root: bool = True


class HttpProbe(_Part, frozen=True, kw_only=True):
    """GET; an answer of 200 to 399 is healthy. `port` names a listener."""

    port: PartName
    path: UrlPath = "/"


class TcpProbe(_Part, frozen=True, kw_only=True):
    """A connection that is accepted is healthy. `port` names a listener."""

    port: PartName


class ExecProbe(_Part, frozen=True, kw_only=True):
    """A command in the container; exit code 0 is healthy."""

    command: Command


class Probe(_Part, frozen=True, kw_only=True):
    """Exactly one of http, tcp and exec."""

    http: HttpProbe | None = None
    tcp: TcpProbe | None = None
    exec: ExecProbe | None = None


class Healthcheck(Probe, frozen=True, kw_only=True):
    """`retries` failures in a row restart the app; `ready` is asked instead until the app serves for the first time."""

    interval: Duration = "5s"
    timeout: Duration = "3s"
    retries: Annotated[int, Meta(ge=1, le=100)] = 3
    start_period: Duration = "30s"
    ready: Probe | None = None

    @property
    def interval_s(self) -> float:
        return parse_duration(self.interval)

    @property
    def timeout_s(self) -> float:
        return parse_duration(self.timeout)

    @property
    def start_period_s(self) -> float:
        return parse_duration(self.start_period)


class Stop(_Part, frozen=True, kw_only=True):
    """The signal that asks the app to end, and how long it may take before it is killed."""

    signal: Annotated[str, _text(r"SIG[A-Z0-9+]{2,10}", "must be the name of a signal, as SIGTERM", extra_json_schema={})] = (
        "SIGTERM"
    )
    grace: Duration = "8s"

    @property
    def grace_s(self) -> float:
        return parse_duration(self.grace)


class Update(_Part, frozen=True, kw_only=True):
    """An updated app must be ready by `health_deadline`; with `auto_rollback` it goes back to the old image otherwise."""

    health_deadline: Duration = "2m"
    auto_rollback: bool = True

    @property
    def health_deadline_s(self) -> float:
        return parse_duration(self.health_deadline)


class NetworkPermissions(_Part, frozen=True, kw_only=True):
    """What the app may reach by itself. It is reachable through its listeners in any case. Left out: as `internet` says.

    Not enforced yet: `dns: deny` beside `internet: allow`, and `local_network: deny` towards this host's own addresses.
    """

    internet: Access = Access.DENY
    local_network: Access | None = None
    dns: Access | None = None


class ProcessPermissions(_Part, frozen=True, kw_only=True):
    max_processes: Annotated[int, Meta(ge=1, le=4_194_304)] = 2048
    max_open_files: Annotated[int, Meta(ge=16, le=1_048_576)] | None = None


class Permissions(_Part, frozen=True, kw_only=True):
    network: NetworkPermissions = NetworkPermissions()
    capabilities: tuple[Annotated[str, Meta(pattern="^(CAP_)?[A-Z_]+$", extra={"check": "capability"})], ...] = ()
    privileged: bool = False
    resources: ProcessPermissions = ProcessPermissions()


class Limits(_Part, frozen=True, kw_only=True):
    memory: Size | None = None
    cpu: Annotated[float, Meta(ge=0, le=64, description="Cores; 0 is no limit.")] | None = None

    @property
    def memory_bytes(self) -> int:
        return parse_size(self.memory) if self.memory else 0


class Resources(_Part, frozen=True, kw_only=True):
    limits: Limits = Limits()


class Manifest(_Part, frozen=True, kw_only=True):
    """An app. `name`, one of `image` and `build`, and `listeners` are required."""

    name: AppName
    listeners: Annotated[tuple[Listener, ...], Meta(min_length=1, max_length=32)]
    title: Annotated[str, Meta(max_length=200, extra={"check": "one_line"})] = ""
    type: AppType = AppType.USER
    image: Image | None = None
    build: Build | None = None
    pull: Pull = Pull.MISSING
    command: Annotated[tuple[Argument, ...], Meta(max_length=256)] = ()
    environment: dict[EnvironmentName, EnvironmentValue] = {}
    secrets: Annotated[tuple[Secret, ...], Meta(max_length=64)] = ()
    cluster: Cluster = Cluster()
    storage: Storage = Storage()
    filesystem: Filesystem = Filesystem()
    healthcheck: Healthcheck | None = None
    stop: Stop = Stop()
    update: Update = Update()
    depends_on: tuple[PartName, ...] = ()
    permissions: Permissions = Permissions()
    resources: Resources = Resources()
    app_config: Any = None
    extensions: dict[str, Any] = {}  # the keys that begin with `x-`

    @property
    def is_stateful(self) -> bool:
        return bool(self.storage.persistent)

    @property
    def is_led(self) -> bool:
        """Whether at most one node may run it for real."""
        return self.cluster.policy is not Policy.ALWAYS_ON

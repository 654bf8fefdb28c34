"""The admin's file: `/etc/piccolod/piccolod.toml`, or what `--config` names.

Every key has a default, so an empty file is a valid one. Unknown keys and wrong types are errors that name the key and
suggest the nearest right one; all of them are reported at once. The classes below are the reference of the file: one
class a section, one field a key. Keys whose machinery is not built yet are absent from this file and so refused.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import socket
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from piccolod.errors import Bug, Invalid, Problem
from piccolod.paths import Paths

DEFAULT_FILE = Path("/etc/piccolod/piccolod.toml")

# Linux: sizeof(sockaddr_un.sun_path), one byte of it for the end. The longest name below run_dir has 24 bytes.
_SOCKET_PATH_BYTES = 107
_LONGEST_SOCKET_NAME = "/bus/persistence.cmd.new"


@dataclass(frozen=True, slots=True)
class Node:
    name: str = ""  # default: the host's name
    address: str = "127.0.0.1"  # what other machines and `status` are told
    state_dir: str = "/var/lib/piccolod"
    run_dir: str = "/run/piccolod"


@dataclass(frozen=True, slots=True)
class Api:
    listen: list[str] = field(default_factory=lambda: ["127.0.0.1:8080"])
    tls: str = "auto"  # auto: off on loopback, else the files below; off
    cert: str = ""
    key: str = ""
    trusted_proxies: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Podman:
    """Empty = a folder of piccolod's own under state_dir or run_dir; `runtime` empty = probed."""

    root: str = ""
    runroot: str = ""
    network_config_dir: str = ""
    containers_conf: str = ""
    runtime: str = ""


@dataclass(frozen=True, slots=True)
class Apps:
    public_ports: str = "35000-45000"
    strict: bool = True  # refuse a limit that this host cannot enforce; false: run without it, with a warning that stays


@dataclass(frozen=True, slots=True)
class Security:
    setup_from: str = "local"  # local: unix socket and loopback; code: also from elsewhere with the code printed at start


@dataclass(frozen=True, slots=True)
class Cluster:
    """`timing` is read by `cluster init` alone: it holds for the whole cluster from then on."""

    peer_port: int = 7443  # clients of apps that another node leads; the port above it is for calls between nodes
    timing: str = "auto"  # auto: the fastest of fast, balanced, patient that holds here


@dataclass(frozen=True, slots=True)
class Etcd:
    """`mode` is asked by `cluster init` and `cluster join`, and a member keeps it from then on. auto: each node has a member of
    etcd of its own, at the ports. external: the cluster has one that its owner looks after, at the endpoints.
    """

    mode: str = "auto"
    endpoints: list[str] = field(default_factory=list)  # https://HOST:PORT, those that are asked first in front
    ca: str = ""
    cert: str = ""
    key: str = ""
    client_port: int = 2379
    peer_port: int = 2380

    @property
    def is_external(self) -> bool:
        return self.mode == "external"


@dataclass(frozen=True, slots=True)
class Telemetry:
    journal_days: int = 30


@dataclass(frozen=True, slots=True)
class ModuleConfig:
    enabled: bool = True
    heartbeat_ms: int = 0  # 0 = as kernel.py says
    memory_max: str = ""
    log_level: str = "info"


@dataclass(frozen=True, slots=True)
class Config:
    node: Node = field(default_factory=Node)
    api: Api = field(default_factory=Api)
    podman: Podman = field(default_factory=Podman)
    apps: Apps = field(default_factory=Apps)
    security: Security = field(default_factory=Security)
    cluster: Cluster = field(default_factory=Cluster)
    etcd: Etcd = field(default_factory=Etcd)
    telemetry: Telemetry = field(default_factory=Telemetry)
    modules: dict[str, ModuleConfig] = field(default_factory=dict)

    @property
    def paths(self) -> Paths:
        return Paths(state=Path(self.node.state_dir), run=Path(self.node.run_dir))

    @property
    def public_ports(self) -> range:
        """The ports that `public_port: auto` picks from, both ends included."""
        low, high = self.apps.public_ports.split("-")
        return range(int(low), int(high) + 1)

    @property
    def rpc_port(self) -> int:
        """Where the other nodes call this one."""
        return self.cluster.peer_port + 1

    @property
    def api_url(self) -> str:
        """Where the API is reached from other machines; empty when it listens on loopback alone."""
        for item in self.api.listen:
            host, port = split_listen(item)
            if not ipaddress.ip_address(host).is_loopback:
                at = self.node.address if ipaddress.ip_address(host).is_unspecified else host
                return f"{'http' if is_plain(self.api, item) else 'https'}://{at_port(at, port)}"
        return ""

    def module(self, name: str) -> ModuleConfig:
        return self.modules.get(name.partition(".")[0], ModuleConfig())


def load(file: Path | None) -> Config:
    """Reads and checks a configuration. `None`: the default file, or all defaults when it does not exist.

    Raises Invalid with every mistake of the file.
    """
    if file is None:
        if not DEFAULT_FILE.exists():
            return parse("")
        file = DEFAULT_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot read the configuration {file}: {error}", hint="name another with --config FILE") from error
    return parse(text, name=str(file))


def parse(text: str, name: str = "piccolod.toml") -> Config:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{name} is not TOML: {error}") from error
    problems: list[Problem] = []
    config: Config = _section(Config, document, "", problems)
    if not problems:
        config = _with_host_defaults(config)
        problems = list(_rules(config))
    if problems:
        raise Invalid(f"{name} has {len(problems)} mistake(s)", errors=tuple(problems))
    return config


def _section(kind: Any, document: dict[str, Any], path: str, problems: list[Problem]) -> Any:
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    values: dict[str, Any] = {}
    for key, value in document.items():
        where = f"{path}.{key}" if path else key
        if key not in known:
            problems.append(Problem(where, "unknown key" + _did_you_mean(key, known)))
            continue
        values[key] = _value(hints[key], value, where, problems)
    return kind(**values)


def _did_you_mean(word: str, known: typing.Collection[str]) -> str:
    import difflib  # here: every process reads the configuration, and seldom with a mistake in it

    near = difflib.get_close_matches(word, known, n=1)
    return f", did you mean `{near[0]}`?" if near else ""


def _value(hint: Any, value: Any, where: str, problems: list[Problem]) -> Any:
    if dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return _section(hint, value, where, problems)
    elif typing.get_origin(hint) is dict:
        if isinstance(value, dict):
            inner = typing.get_args(hint)[1]
            return {key: _value(inner, item, f"{where}.{key}", problems) for key, item in value.items()}
    elif typing.get_origin(hint) is list:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
    elif type(value) is hint:
        return value
    problems.append(Problem(where, f"must be {_type_name(hint)}, not {type(value).__name__}"))
    return None  # not used: a document with problems is refused


def _type_name(hint: Any) -> str:
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is dict:
        return "a table"
    if typing.get_origin(hint) is list:
        return "a list of strings"
    return {str: "a string", bool: "true or false", int: "a whole number"}[hint]


def _with_host_defaults(config: Config) -> Config:
    """Fills in what depends on the host: the name, and folders as they really are, so that a later chdir moves nothing.

    Links in them are followed once, here: podman and the kernel name the same folders without.
    """
    node = dataclasses.replace(
        config.node,
        name=config.node.name or _host_name(),
        state_dir=os.path.realpath(config.node.state_dir),
        run_dir=os.path.realpath(config.node.run_dir),
    )
    return dataclasses.replace(config, node=node)


def _host_name() -> str:
    return re.sub(r"[^a-z0-9-]", "-", socket.gethostname().split(".")[0].lower()).strip("-")[:50] or "node"


def _rules(config: Config) -> typing.Iterator[Problem]:
    from piccolod.kernel import MODULE_NAMES

    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?", config.node.name):
        yield Problem("node.name", f"{config.node.name!r} must be lowercase letters, digits and hyphens, at most 50")
    if not _is_address(config.node.address):
        yield Problem("node.address", f"{config.node.address!r} is not an IP address")
    if len(config.node.run_dir.encode() + _LONGEST_SOCKET_NAME.encode()) > _SOCKET_PATH_BYTES:
        room = _SOCKET_PATH_BYTES - len(_LONGEST_SOCKET_NAME)
        yield Problem("node.run_dir", f"too long for a unix socket: at most {room} bytes")
    for item in config.api.listen:
        yield from _listen_rules(item, config)
    if config.api.tls not in ("auto", "off"):
        yield Problem("api.tls", "must be `auto` or `off`")
    if bool(config.api.cert) != bool(config.api.key):
        yield Problem("api.cert", "`api.cert` and `api.key` go together")
    for proxy in config.api.trusted_proxies:
        if not _is_network(proxy):
            yield Problem("api.trusted_proxies", f"{proxy!r} is not an address or a network")
    if not (match := re.fullmatch(r"(\d{1,5})-(\d{1,5})", config.apps.public_ports)) or not (
        1024 <= int(match[1]) <= int(match[2]) <= 65535
    ):
        yield Problem("apps.public_ports", "must be `LOW-HIGH` within 1024-65535")
    if config.security.setup_from not in ("local", "code"):
        yield Problem("security.setup_from", "must be `local` or `code`")
    yield from _port_rules(config)
    yield from _etcd_rules(config.etcd)
    if config.cluster.timing not in ("auto", "fast", "balanced", "patient"):
        yield Problem("cluster.timing", "must be `auto`, `fast`, `balanced` or `patient`")
    if not 1 <= config.telemetry.journal_days <= 3650:
        yield Problem("telemetry.journal_days", "must be 1 to 3650")
    yield from _module_rules(config, MODULE_NAMES)


def _port_rules(config: Config) -> typing.Iterator[Problem]:
    ports = {
        "cluster.peer_port": config.cluster.peer_port, "the port above cluster.peer_port": config.rpc_port,
        "etcd.client_port": config.etcd.client_port, "etcd.peer_port": config.etcd.peer_port,
    }  # fmt: skip
    taken: dict[int, str] = {}
    for name, port in ports.items():
        key = name.rpartition(" ")[2]
        if not 1 <= port <= 65535:
            yield Problem(key, f"{name} must be 1 to 65535")
        elif port in taken:
            yield Problem(key, f"{name} is {port}, and so is {taken[port]}")
        taken[port] = name


def _etcd_rules(etcd: Etcd) -> typing.Iterator[Problem]:
    given = [name for name in ("endpoints", "ca", "cert", "key") if getattr(etcd, name)]
    if etcd.mode not in ("auto", "external"):
        yield Problem("etcd.mode", "must be `auto` or `external`")
    elif not etcd.is_external:
        yield from (Problem(f"etcd.{name}", 'only with etcd.mode = "external"') for name in given)
    elif not etcd.endpoints:
        yield Problem("etcd.endpoints", "must name an external etcd, as https://HOST:PORT")
    else:
        yield from _endpoint_rules(etcd)


def _endpoint_rules(etcd: Etcd) -> typing.Iterator[Problem]:
    schemes = set()
    for url in etcd.endpoints:
        scheme, host = _endpoint(url)
        schemes.add(scheme)
        if not host:
            yield Problem("etcd.endpoints", f"{url!r} is not https://HOST:PORT")
        elif scheme == "http" and not (_is_address(host) and ipaddress.ip_address(host).is_loopback):
            yield Problem("etcd.endpoints", f"{url!r} would go in the clear: https, or http to a loopback address")
    if len(schemes) > 1 or len(set(etcd.endpoints)) < len(etcd.endpoints):
        yield Problem("etcd.endpoints", "must be all https or all http, and each another one")
    for name in ("ca", "cert", "key"):
        file = getattr(etcd, name)
        if "https" in schemes and not file.startswith("/"):
            yield Problem(f"etcd.{name}", "must be the absolute path of a PEM file: https has all of ca, cert and key")
        if schemes == {"http"} and file:
            yield Problem(f"etcd.{name}", "only with endpoints that begin with https://")


def _endpoint(url: str) -> tuple[str, str]:
    """Scheme and host of `https://HOST:PORT`; an empty host: it is none."""
    match = re.fullmatch(r"(https?)://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):(\d{1,5})", url)
    if match is None or not 1 <= int(match[3]) <= 65535:
        return "", ""
    return match[1], match[2].strip("[]")


def _module_rules(config: Config, names: frozenset[str]) -> typing.Iterator[Problem]:
    from piccolod.units import parse_size

    for name, module in config.modules.items():
        if name not in names:
            yield Problem(f"modules.{name}", "no such module" + _did_you_mean(name, names))
        if module.heartbeat_ms and not 50 <= module.heartbeat_ms <= 10_000:
            yield Problem(f"modules.{name}.heartbeat_ms", "must be 50 to 10000, or 0 for the default")
        if module.log_level not in ("debug", "info", "warning", "error"):
            yield Problem(f"modules.{name}.log_level", "must be debug, info, warning or error")
        if module.memory_max:
            try:
                parse_size(module.memory_max)
            except ValueError as error:
                yield Problem(f"modules.{name}.memory_max", str(error))


def _listen_rules(item: str, config: Config) -> typing.Iterator[Problem]:
    try:
        host, port = split_listen(item)
    except ValueError as error:
        yield Problem("api.listen", str(error))
        return
    if not 1 <= port <= 65535:
        yield Problem("api.listen", f"{item!r}: the port must be 1 to 65535")
    if not ipaddress.ip_address(host).is_loopback and config.api.tls == "auto" and config.api.cert == "":
        # The cluster CA, which gives every node a certificate, comes with `cluster init`.
        yield Problem(
            "api.listen",
            f"{item!r} is reachable from other machines and there is no certificate: "
            'listen on 127.0.0.1, give api.cert and api.key, or say tls = "off"',
        )


def split_listen(item: str) -> tuple[str, int]:
    """`0.0.0.0:8080` or `[::1]:8080` as (address, port). Raises ValueError."""
    host, _, port = item.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not _is_address(host) or not re.fullmatch(r"\d{1,5}", port):
        raise ValueError(f"{item!r} is not ADDRESS:PORT")
    return host, int(port)


def at_port(address: str, port: int) -> str:
    """`10.0.0.1:80` or `[fd00::1]:80`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def is_plain(api: Api, item: str) -> bool:
    """Whether an address of `api.listen` is served without TLS: on loopback, where a certificate proves nothing, always."""
    return api.tls == "off" or not api.cert or ipaddress.ip_address(split_listen(item)[0]).is_loopback


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def from_mapping(document: dict[str, Any]) -> Config:
    """The inverse of `dataclasses.asdict`: how the supervisor hands its checked configuration to a module."""
    import msgspec  # here, because the supervisor, which reads the file, needs the standard library alone

    try:
        return msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        raise Bug(f"the supervisor sent a configuration that does not fit: {error}") from error

"""Rules that look at more than one field: `(manifest, surroundings) -> problems and warnings`. Pure."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from piccolod.errors import Problem
from services.apps.capabilities import AS_GOOD_AS_ROOT
from services.apps.host import Host, shortcomings
from services.apps.later import not_supported
from services.apps.manifest import (
    RESERVED_NAMES,
    Access,
    ClientIp,
    Flow,
    Manifest,
    Policy,
    Probe,
    Protocol,
)
from services.apps.reader import Reading

_CONFIG_FOLDER = "/piccolo"
# ext4 with a journal
_MIN_VOLUME_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a manifest is checked against. `depends_on` of each app that is known; `consent`: the admin agrees to privileges.

    `nodes` that are alive; empty: it is not looked whether those that are named are.
    """

    depends_on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    consent: bool = False
    host: Host = field(default_factory=Host)
    strict: bool = True
    nodes: frozenset[str] = frozenset()


def check(manifest: Manifest, reading: Reading, around: Surroundings) -> list[str]:
    """Adds to `reading` what is wrong, and returns the warnings. A field that is already reported is not blamed twice."""
    for path, message in _problems(manifest, reading, around):
        if not reading.broken(path):
            line, column = reading.place(path)
            reading.problems.append(Problem(path, message, line, column))
    return list(_warnings(manifest, around))


def _problems(manifest: Manifest, reading: Reading, around: Surroundings) -> Iterator[tuple[str, str]]:
    yield from _identity(manifest, reading)
    yield from _listeners(manifest)
    yield from _mounts(manifest)
    if not reading.broken("listeners"):
        yield from _probes(manifest)
    yield from _cluster(manifest)
    yield from _dependencies(manifest, around.depends_on)
    yield from _permissions(manifest, around)
    if not _is_signal(manifest.stop.signal):
        yield "stop.signal", f"{manifest.stop.signal!r} is not a signal of Linux"
    if around.strict:
        yield from shortcomings(manifest, around.host)


def _identity(manifest: Manifest, reading: Reading) -> Iterator[tuple[str, str]]:
    if manifest.name in RESERVED_NAMES:
        yield "name", f"`{manifest.name}` is reserved"
    if manifest.image is None and manifest.build is None and not (reading.broken("image") or reading.broken("build")):
        yield "image", "is required, or `build`"
    if manifest.image is not None and manifest.build is not None:
        yield "build", "either `image` or `build`, not both"


def _listeners(manifest: Manifest) -> Iterator[tuple[str, str]]:
    seen: dict[tuple[str, object], str] = {}
    for index, listener in enumerate(manifest.listeners):
        where = f"listeners[{index}]"
        for key, value in (("name", listener.name), ("guest_port", listener.guest_port), ("public_port", listener.public_port)):
            if value in ("auto", "", 0):
                continue
            if (other := seen.setdefault((key, value), where)) != where:
                yield f"{where}.{key}", f"{value} is already used by {other}"
        if listener.flow is Flow.TLS and listener.protocol is not Protocol.RAW:
            yield f"{where}.protocol", "must be `raw` with `flow: tls`, which is passed through unread"
        if listener.client_ip is ClientIp.XFF and listener.protocol is not Protocol.HTTP:
            yield f"{where}.client_ip", "`xff` needs `protocol: http`: only requests that are read can get a header"


def _mounts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    used: dict[str, str] = {}
    for path, target in _targets(manifest):
        if target == _CONFIG_FOLDER or target.startswith(f"{_CONFIG_FOLDER}/"):
            yield path, f"{target!r} must not be in {_CONFIG_FOLDER}, which is piccolod's"
        elif (other := used.setdefault(target, path)) != path:
            yield path, f"{target!r} is already used by {other}"
    for name, volume in manifest.storage.persistent.items():
        if 0 < volume.size_limit_bytes < _MIN_VOLUME_BYTES:
            yield f"storage.persistent.{name}.size_limit", "must be at least 8MiB: a file system needs room of its own"
    both = sorted(set(manifest.storage.persistent) & set(manifest.storage.temporary))
    for name in both:
        yield f"storage.temporary.{name}", "a persistent volume has this name"
    for index, secret in enumerate(manifest.secrets):
        if secret.name and (secret.file is None) == (secret.env is None):
            yield f"secrets[{index}]", "needs either `file` or `env`"
        if secret.env is not None and secret.env in manifest.environment:
            yield f"secrets[{index}].env", f"`{secret.env}` is also in `environment`"


def _targets(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for kind, volumes in (("persistent", manifest.storage.persistent), ("temporary", manifest.storage.temporary)):
        for name, volume in volumes.items():
            yield f"storage.{kind}.{name}.container", volume.container
    for index, secret in enumerate(manifest.secrets):
        if secret.file is not None:
            yield f"secrets[{index}].file", secret.file


def _probes(manifest: Manifest) -> Iterator[tuple[str, str]]:
    check = manifest.healthcheck
    if check is None:
        return
    yield from _probe(manifest, check, "healthcheck")
    if check.ready is not None:
        yield from _probe(manifest, check.ready, "healthcheck.ready")
        if check.exec is not None and check.ready.exec not in (None, check.exec):
            yield "healthcheck.ready.exec", not_supported("a command that differs from `healthcheck.exec`")
    for name in ("interval", "timeout"):
        if getattr(check, f"{name}_s") < 0.1:
            yield f"healthcheck.{name}", "must be at least 100ms"


def _probe(manifest: Manifest, probe: Probe, path: str) -> Iterator[tuple[str, str]]:
    kinds = [name for name in ("http", "tcp", "exec") if getattr(probe, name) is not None]
    if len(kinds) != 1:
        yield path, "needs exactly one of `http`, `tcp` and `exec`"
    listeners = {listener.name: listener for listener in manifest.listeners}
    for kind in kinds:
        if kind == "exec":
            continue
        port = getattr(probe, kind).port
        if port not in listeners:
            yield f"{path}.{kind}.port", f"no listener is called {port!r}; there is {', '.join(sorted(listeners))}"
        elif kind == "http" and listeners[port].flow is Flow.TLS:
            yield f"{path}.http.port", f"listener {port!r} speaks TLS: use `tcp` or `exec`"
        elif listeners[port].client_ip is ClientIp.PROXY_V2:
            yield f"{path}.{kind}.port", f"listener {port!r} expects a PROXY header, which a probe does not send: use `exec`"


def _cluster(manifest: Manifest) -> Iterator[tuple[str, str]]:
    policy = manifest.cluster.policy
    if policy is Policy.ALWAYS_ON and manifest.is_stateful:
        yield "cluster.policy", "`always_on` runs on every node and so cannot have a persistent volume"
    if policy is Policy.ALWAYS_ON and manifest.cluster.prefer:
        yield "cluster.prefer", "`always_on` runs on every node"
    if policy is Policy.ALWAYS_ON and manifest.cluster.never:
        yield "cluster.never", not_supported("`always_on` on some nodes alone")
    for key in ("prefer", "never"):
        names = getattr(manifest.cluster, key)
        for index, name in enumerate(names):
            if names.index(name) != index:
                yield f"cluster.{key}[{index}]", f"{name!r} is there twice"
            elif key == "never" and name in manifest.cluster.prefer:
                yield f"cluster.{key}[{index}]", f"{name!r} is in `prefer` too"


def _dependencies(manifest: Manifest, known: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    graph = {**known, manifest.name: manifest.depends_on}
    for index, name in enumerate(manifest.depends_on):
        where = f"depends_on[{index}]"
        if name == manifest.name:
            yield where, "an app cannot depend on itself"
        elif name not in known:
            yield where, f"no app is called {name!r}"
        elif manifest.depends_on.index(name) != index:
            yield where, f"{name!r} is there twice"
        elif (chain := _way(graph, name, manifest.name)) is not None:
            yield where, f"a cycle: {' -> '.join([manifest.name, *chain])}"


def _way(graph: Mapping[str, tuple[str, ...]], start: str, goal: str) -> list[str] | None:
    """The shortest chain of dependencies from `start` to `goal`."""
    came_from: dict[str, str | None] = {start: None}
    queue = [start]
    for name in queue:
        for following in graph.get(name, ()):
            if following not in came_from:
                came_from[following] = name
                queue.append(following)
    if goal not in came_from:
        return None
    chain: list[str] = []
    step: str | None = goal
    while step is not None:
        chain.append(step)
        step = came_from[step]
    return chain[::-1]


def _permissions(manifest: Manifest, around: Surroundings) -> Iterator[tuple[str, str]]:
    permissions = manifest.permissions
    if permissions.privileged and not around.consent:
        yield "permissions.privileged", "gives the app the whole machine: it needs the admin's consent (--allow-privileged)"
    for index, name in enumerate(permissions.capabilities):
        if name.removeprefix("CAP_") in AS_GOOD_AS_ROOT and not around.consent:
            yield (
                f"permissions.capabilities[{index}]",
                f"{name} is as good as the whole machine: it needs the admin's consent (--allow-privileged)",
            )
    network = permissions.network
    if network.local_network not in (None, network.internet):
        yield "permissions.network.local_network", not_supported("a local network that differs from `internet`")
    if network.dns is Access.ALLOW and network.internet is Access.DENY:
        yield "permissions.network.dns", not_supported("names without `internet: allow`")
    if around.strict:
        yield from _without_names(manifest)


def _without_names(manifest: Manifest) -> Iterator[tuple[str, str]]:
    network = manifest.permissions.network
    if network.dns is Access.DENY and network.internet is Access.ALLOW:
        yield "permissions.network.dns", not_supported("`deny` beside `internet: allow`: a name server is only not named")


def _is_signal(name: str) -> bool:
    return name in signal.Signals.__members__ and name not in ("SIGSTOP", "SIGCONT", "SIGCHLD")


def _warnings(manifest: Manifest, around: Surroundings) -> Iterator[str]:
    for index, secret in enumerate(manifest.secrets):
        if secret.env is not None:
            yield f"secrets[{index}]: every process of the app sees an environment variable; a `file` can be kept from some"
    for key in ("prefer", "never") if around.nodes else ():
        for index, name in enumerate(getattr(manifest.cluster, key)):
            if name not in around.nodes:
                yield f"cluster.{key}[{index}]: no node is called `{name}`, or it is off now"
    if manifest.permissions.network.local_network is Access.DENY:
        yield "permissions.network.local_network: `deny` does not keep the app from this host's own addresses yet"
    if not around.strict:
        for path, message in _without_names(manifest):
            yield f"{path}: {message}"
        for path, message in shortcomings(manifest, around.host):
            yield f"{path}: {message}"

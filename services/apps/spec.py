"""From a manifest to podman: libpod's SpecGenerator of the container, and its private network. Pure."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from piccolod.leadership.oci_hook import term_annotations
from piccolod.leadership.resources import resource_for_app
from piccolod.paths import Paths
from services.apps.badge import Badge, container_name
from services.apps.desired import Version
from services.apps.host import Host
from services.apps.manifest import Access, ExecProbe, Manifest

# podman's own choice with `--read-only`: most programs want these, and they are in memory.
_WRITABLE: Final = ("/tmp", "/run", "/var/tmp")  # noqa: S108  (paths inside of the container)
_WRITABLE_BYTES: Final = 64 * 2**20
_CPU_PERIOD_US: Final = 100_000
CONFIG_FILE: Final = "/piccolo/config/app.yaml"
# Raised when the way in which specs are written changes: running containers are then replaced.
_FORM: Final = 2


def network_name(app: str) -> str:
    return f"piccolo-{app}"


def bridge_name(state: Path, app: str) -> str:
    """Of the host's interface: another for each app of each node on one host, which podman's own count is not.

    Linux allows 15 characters (IFNAMSIZ in linux/if.h).
    """
    return f"pic{hashlib.sha256(f'{state}/{app}'.encode()).hexdigest()[:12]}"


def network(app: str, node: str, subnet: str, gateway: str, bridge: str, *, internet: bool) -> dict[str, Any]:
    """A network of one app. The gateway is named because podman gives an internal network none, and then the router,
    which dials from the host, would have no address in it."""
    return {
        "name": network_name(app),
        "driver": "bridge",
        "network_interface": bridge,
        "internal": not internet,
        "dns_enabled": False,
        "ipv6_enabled": False,
        "subnets": [{"subnet": subnet, "gateway": gateway}],
        "labels": {"io.piccolo.app": app, "io.piccolo.node": node},
    }


def wants_internet(manifest: Manifest) -> bool:
    return manifest.permissions.network.internet is Access.ALLOW


def digest(version: Version, restarts: int) -> str:
    """Names what a container of this version would be: another digest, another container. The same on every host."""
    body = {**_body(version, Host()), "restarts": restarts, "form": _FORM, "internet": wants_internet(version.manifest)}
    body["secrets"] = [[secret.name, secret.file, secret.env] for secret in version.manifest.secrets]
    body["app_config"] = version.manifest.app_config
    body["volumes"] = {name: volume.container for name, volume in version.manifest.storage.persistent.items()}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def container(
    version: Version,
    badge: Badge,
    host: Host,
    paths: Paths,
    volumes: Mapping[str, str],
    secrets: Mapping[str, str],
) -> dict[str, Any]:
    """The whole specification. `volumes`: name -> where it is mounted; `secrets`: environment variable -> value."""
    manifest = version.manifest
    body = _body(version, host)
    files = paths.app_files / manifest.name
    binds = [_bind(volumes[name], volume.container) for name, volume in manifest.storage.persistent.items()]
    binds += [_bind(str(files / "secrets" / s.name), s.file, "ro") for s in manifest.secrets if s.file is not None]
    if manifest.app_config is not None:
        binds.append(_bind(str(files / "app.yaml"), CONFIG_FILE, "ro"))
    body["mounts"] += binds
    body["env"] = {**body["env"], **secrets}
    body["labels"] = badge.labels()
    if manifest.is_led:
        body["annotations"] = term_annotations(resource_for_app(manifest.name), badge.token, badge.epoch)
    return body


def _body(version: Version, host: Host) -> dict[str, Any]:
    """Everything that follows from the version alone."""
    manifest = version.manifest
    permissions = manifest.permissions
    name = container_name(manifest.name)
    body: dict[str, Any] = {
        "name": name,
        "image": version.image_id.removeprefix("sha256:"),
        "hostname": manifest.name,
        "env": dict(manifest.environment),
        "netns": {"nsmode": "bridge"},
        "Networks": {network_name(manifest.name): {}},
        "no_new_privileges": True,
        "cap_drop": ["ALL"],
        "cap_add": [f"CAP_{item.removeprefix('CAP_')}" for item in permissions.capabilities],
        "read_only_filesystem": manifest.filesystem.read_only_root,
        "image_volume_mode": "ignore",
        "mounts": _temporary(manifest),
        "restart_policy": "no",
        "stop_timeout": round(manifest.stop.grace_s),
        "stop_signal": _signal(manifest.stop.signal),
        "resource_limits": _limits(manifest, host),
        "log_configuration": {"driver": "k8s-file"},
    }
    if manifest.command:
        body["command"] = list(manifest.command)
    if (check := _check(manifest)) is not None:
        # Interval 0: podman sets up no timer of its own, the check is run when piccolod asks for it.
        timeout_ns = round((manifest.healthcheck.timeout_s if manifest.healthcheck else 0) * 1e9)
        body["healthconfig"] = {"Test": ["CMD", *check.command], "Interval": 0, "Timeout": timeout_ns, "Retries": 1}
    if permissions.privileged:
        body |= {"privileged": True, "cap_drop": [], "no_new_privileges": False}
    if not wants_internet(manifest):
        # No file at all instead of the host's, which would name servers that cannot be reached.
        body["use_image_resolve_conf"] = True
    elif permissions.network.dns is Access.DENY:
        body["use_image_resolve_conf"] = True
    if permissions.resources.max_open_files is not None:
        body["r_limits"] = _rlimits(min(permissions.resources.max_open_files, host.open_files), host.processes)
    return body


def _check(manifest: Manifest) -> ExecProbe | None:
    """The one command that is run inside to see whether the app is well or ready."""
    check = manifest.healthcheck
    if check is None:
        return None
    return check.exec or (check.ready.exec if check.ready is not None else None)


def _limits(manifest: Manifest, host: Host) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    wanted = manifest.resources.limits
    if wanted.memory and host.memory:
        # No swap on top: the limit is what the app can have.
        limits["memory"] = {"limit": wanted.memory_bytes, "swap": wanted.memory_bytes}
    if host.pids:
        limits["pids"] = {"limit": manifest.permissions.resources.max_processes}
    if wanted.cpu and host.cpu:
        limits["cpu"] = {"quota": max(1000, round(wanted.cpu * _CPU_PERIOD_US)), "period": _CPU_PERIOD_US}
    return limits


def _rlimits(files: int, processes: int) -> list[dict[str, Any]]:
    """podman sets a limit of processes of its own beside any other, and more than the host grants: so it is named too."""
    return [
        {"type": "nofile", "soft": files, "hard": files},
        {"type": "nproc", "soft": processes, "hard": processes},
    ]


def _temporary(manifest: Manifest) -> list[dict[str, Any]]:
    targets = {volume.container: volume.size_limit_bytes for volume in manifest.storage.temporary.values()}
    taken = {*targets, *(volume.container for volume in manifest.storage.persistent.values())}
    if manifest.filesystem.read_only_root:
        targets |= {path: _WRITABLE_BYTES for path in _WRITABLE if path not in taken}
    return [
        {
            "destination": path,
            "type": "tmpfs",
            "source": "tmpfs",
            "options": [f"size={size}", "mode=1777", "nosuid", "nodev", "notmpcopyup"],
        }
        for path, size in sorted(targets.items())
    ]


def _bind(source: str, target: str, mode: str = "rw") -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": source, "options": [mode, "nosuid", "nodev", "rprivate"]}


def _signal(name: str) -> int:
    return int(signal.Signals[name])

"""What the manifest knows by name but this version does not do yet, or never will: refused, never ignored.

Keys are paths without indices, `*` for any name in a mapping. An empty list or mapping asks for nothing and is accepted.
"""

from __future__ import annotations

from typing import Final

LATER_KEYS: Final[dict[str, str]] = {
    "backup": "backups",
    "cluster.require": "placement requirements",
    "permissions.devices": "devices of the host",
    "permissions.filesystem": "permissions.filesystem; storage is declared in `storage`",
    "permissions.network.allowed_domains": "a list of allowed domains",
    "permissions.device_access": "devices of the host",
    "filesystem.persistent": "filesystem.persistent; declare a volume in `storage.persistent`",
    "resources.limits.storage": "a limit over all volumes; each volume has its `size_limit`",
    "listeners.protocol_middleware": "middleware in the router",
    "listeners.remote_ports": "remote access",
    "build.git": "building from git; give `build.containerfile`, or an image",
}

LATER_VALUES: Final[dict[tuple[str, str], str]] = {
    ("listeners.flow", "udp"): "udp listeners",
    ("cluster.policy", "follower_ok_ro"): "followers that run with read-only volumes",
    ("cluster.on_store_loss", "keep"): "running on without a quorum; an app stops with its term",
}

# What people write who know compose files or the first piccolod.
OTHER_KEYS: Final[dict[str, str]] = {
    "ports": "write `listeners: [{name: web, guest_port: 80}]` instead: each listener gets a public port by itself, "
    "or the number in its `public_port`",
    "volumes": "write `storage: {persistent: {data: {container: /data}}}` instead; folders of the host cannot be named",
    "env": "it is called `environment`",
    "entrypoint": "the image's entrypoint is kept; its arguments are in `command`",
    "restart": "an app is always restarted; `piccoloctl apps stop` stops it",
    "services": "this is a compose file; a manifest describes one app",
    "networks": "each app has a private network; see `permissions.network`",
    "privileged": "it belongs below `permissions`",
    "memory": "it belongs below `resources.limits`",
    "<<": "merge keys are not part of YAML 1.2; repeat the keys",
    "storage.persistent.*.host": "a manifest cannot name a folder of the host",
    "storage.temporary.*.host": "a manifest cannot name a folder of the host",
}


def not_supported(what: str) -> str:
    return f"not supported yet: {what}"

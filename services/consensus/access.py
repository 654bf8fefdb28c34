"""How this node speaks to the cluster's etcd: whom it asks, and with which certificates.

Where the nodes keep etcd that is its own member, from `etcd.json`, then those of the others, with the node's certificate.
Where an owner keeps it, it is what `[etcd]` of the configuration says now: he may move it and change its certificates. What it
said last is kept in `state_dir/cluster/owners-etcd.json`, for a configuration that names none any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from piccolod import durable, etcd_conf
from piccolod.cluster_mode import Mode
from piccolod.config import Etcd
from piccolod.errors import Invalid, StoreUnavailable
from piccolod.paths import Paths
from piccolod.protocol.cluster import KnownMember
from services.consensus import members_file
from services.consensus.etcd.channel import Tls
from services.consensus.etcd.client import Client
from services.consensus.etcd.header import Unjudged


class Access(Struct, frozen=True):
    """`endpoints`: ADDRESS:PORT, the one to ask first in front. Without `tls` in the clear."""

    endpoints: tuple[str, ...]
    tls: Tls | None

    def client(self, rpc_s: float) -> Client:
        """It judges no header: whoever reads does that."""
        return Client(self.endpoints, self.tls, rpc_s=rpc_s, lineage=Unjudged())


def open_client(paths: Paths, etcd: Etcd, mode: Mode, rpc_s: float) -> Client:
    """As this node became a member, whatever mode the configuration has by now: `trouble` tells of that.

    For a start, which happens also while an owner's certificates cannot be read: with those of the cluster, which prove
    nobody to this client, nor it to anybody.
    Raises Invalid when no endpoint is known, StoreUnavailable, Unavailable when a file cannot be read.
    """
    if not mode.is_external:
        return managed(paths, members_file.read(paths)).client(rpc_s)
    try:
        return external(paths, etcd).client(rpc_s)
    except StoreUnavailable:
        return _access(_owners(paths, etcd).endpoints, _own_files(paths), "see the disk").client(rpc_s)


def remember(paths: Paths, etcd: Etcd) -> None:
    """What the configuration says of an owner's etcd, for a time when it says nothing. Raises OSError."""
    raw = msgspec.json.encode(etcd)
    file = _memory(paths)
    if etcd.is_external and (not file.exists() or file.read_bytes() != raw):
        durable.replace(file, raw, mode=0o644)


def trouble(etcd: Etcd, mode: Mode) -> str:
    """Why the configuration is not what this node goes by; empty if it is."""
    if etcd.is_external and not mode.is_external:
        return (
            'etcd.mode is "external" in the configuration, and this node is a member with an etcd of its own: it goes on with '
            "that; to change it, `piccoloctl cluster leave` and join anew"
        )
    if mode.is_external and not etcd.is_external:
        return (
            f'etcd.mode is "{etcd.mode}" in the configuration, and the etcd of this cluster is kept by its owner: this node '
            "goes on with the endpoints of before; put them back, or `piccoloctl cluster leave` and join anew"
        )
    return ""


def managed(paths: Paths, members: Mapping[str, KnownMember], *, local: bool = True) -> Access:
    """`local` False: the members of other nodes alone. Raises as `open_client`."""
    settings = etcd_conf.read(paths.etcd_conf)
    own = settings.client_url if settings is not None else ""
    others = [member.client_url for member in members.values()]
    urls = [url for url in dict.fromkeys([own, *others]) if url and (local or url != own)]
    if not urls:
        raise Invalid(f"no member of etcd is known in {paths.cluster}", hint="join this node again")
    return _access(urls, _own_files(paths), "see the disk")


def external(paths: Paths, etcd: Etcd) -> Access:
    """Raises as `open_client`."""
    owners = _owners(paths, etcd)
    return _access(owners.endpoints, [Path(owners.ca), Path(owners.cert), Path(owners.key)], "see [etcd] in the configuration")


def _owners(paths: Paths, etcd: Etcd) -> Etcd:
    if etcd.is_external:
        return etcd
    try:
        return msgspec.json.decode(_memory(paths).read_bytes(), type=Etcd)
    except (OSError, msgspec.MsgspecError) as error:
        raise Invalid(
            f"the etcd of this cluster is kept by its owner, and the configuration names none: {error}",
            hint='put mode = "external" back into [etcd], with its endpoints and certificates, and restart piccolod',
        ) from error


def _memory(paths: Paths) -> Path:
    return paths.cluster / "owners-etcd.json"


def _own_files(paths: Paths) -> list[Path]:
    return [paths.cluster / name for name in ("ca.pem", "node.pem", "node.key")]


def _access(urls: list[str], files: list[Path], hint: str) -> Access:
    """The files count for https alone."""
    tls = Tls.read(files, hint) if any(url.startswith("https://") for url in urls) else None
    return Access(tuple(url.partition("://")[2] for url in urls), tls)

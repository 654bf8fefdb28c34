"""How this node finds etcd when it starts: its own member from `etcd.json`, the others from `members.json`, its certificates.

`members.json` is a cache of `node/*` of the last life, for a start beside an etcd of its own that does not answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from piccolod import durable, etcd_conf
from piccolod.errors import Invalid, StoreUnavailable
from piccolod.leadership import timing
from piccolod.leadership.timing import Timing
from piccolod.paths import Paths
from piccolod.protocol import cluster
from piccolod.protocol.cluster import KnownMember

if TYPE_CHECKING:  # grpc comes with them: for members of a cluster alone, and after the fork
    from services.consensus.etcd.channel import Tls
    from services.consensus.etcd.client import Client


def read(paths: Paths) -> dict[str, KnownMember]:
    """Empty where there is none, or none that can be read."""
    try:
        return msgspec.json.decode((paths.cluster / "members.json").read_bytes(), type=dict[str, KnownMember])
    except (OSError, msgspec.MsgspecError):
        return {}


def write(paths: Paths, members: Mapping[str, KnownMember]) -> None:
    """Whole or not at all. Raises OSError."""
    durable.replace(paths.cluster / "members.json", msgspec.json.format(msgspec.json.encode(members)), mode=0o644)


def timing_of(paths: Paths) -> Timing:
    """The cluster's constants. Raises Invalid for a file that is none of ours, and as `timing.founded`."""
    file = paths.cluster / "timing.json"
    try:
        found = msgspec.json.decode(file.read_bytes(), type=cluster.Timing)
    except (OSError, msgspec.MsgspecError) as error:
        raise Invalid(f"{file} says no timing: {error}", hint="restore it from another member") from error
    return timing.founded(found.profile, found.stop_s)


def urls(paths: Paths, members: Mapping[str, KnownMember]) -> list[str]:
    """The client URLs of etcd: the member of this node first."""
    settings = etcd_conf.read(paths.etcd_conf)
    own = [settings.client_url] if settings is not None else []
    return list(dict.fromkeys([*own, *(member.client_url for member in members.values() if member.client_url)]))


def endpoints(found: list[str]) -> list[str]:
    return [url.partition("://")[2] for url in found]


def certificates(paths: Paths, found: list[str]) -> Tls | None:
    """None where etcd is spoken to in the clear. Raises StoreUnavailable for files that cannot be read."""
    from services.consensus.etcd.channel import Tls

    if not any(url.startswith("https://") for url in found):
        return None
    try:
        ca, cert, key = ((paths.cluster / name).read_bytes() for name in ("ca.pem", "node.pem", "node.key"))
    except OSError as error:
        raise StoreUnavailable(f"cannot read {error.filename}: {error.strerror}", hint="see the disk") from error
    return Tls(ca, cert, key)


def open_client(paths: Paths, rpc_s: float, *, local: bool = True) -> Client:
    """Of the cluster's etcd, with the certificate of this node. It judges no header: whoever reads does that.

    `local` False: the members of other nodes alone.

    Raises Invalid when no endpoint is known, StoreUnavailable, Unavailable when a file cannot be read.
    """
    from services.consensus.etcd.client import Client
    from services.consensus.etcd.header import Unjudged

    found = urls(paths, read(paths))
    settings = etcd_conf.read(paths.etcd_conf)
    if not local and settings is not None:
        found = [url for url in found if url != settings.client_url]
    if not found:
        raise Invalid(f"no member of etcd is known in {paths.cluster}", hint="join this node again")
    return Client(endpoints(found), certificates(paths, found), rpc_s=rpc_s, lineage=Unjudged())

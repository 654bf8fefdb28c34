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
from services.consensus.cluster_records import MEMBER, NodeRecord

if TYPE_CHECKING:  # grpc comes with them: for members of a cluster alone, and after the fork
    from services.consensus.etcd.channel import Tls
    from services.consensus.etcd.client import Client


class Known(msgspec.Struct, frozen=True):
    """One node, as `members.json` has it."""

    address: str
    client_url: str
    rpc: str = ""
    role: str = MEMBER


class TimingChoice(msgspec.Struct, frozen=True):
    """`timing.json`: one for the cluster, fixed when it began."""

    profile: str
    stop_s: float = 0.0


def read(paths: Paths) -> dict[str, Known]:
    """Empty where there is none, or none that can be read."""
    try:
        return msgspec.json.decode((paths.cluster / "members.json").read_bytes(), type=dict[str, Known])
    except (OSError, msgspec.MsgspecError):
        return {}


def known(nodes: Mapping[str, NodeRecord]) -> dict[str, Known]:
    return {name: Known(node.address, node.client_url, node.rpc, node.role) for name, node in nodes.items()}


def write(paths: Paths, members: Mapping[str, Known]) -> None:
    """Whole or not at all. Raises OSError."""
    durable.replace(paths.cluster / "members.json", msgspec.json.encode(members), mode=0o644)


def timing_of(paths: Paths) -> Timing:
    """The cluster's constants. Raises Invalid for a file that is none of ours, or breaks an inequality."""
    file = paths.cluster / "timing.json"
    try:
        choice = msgspec.json.decode(file.read_bytes(), type=TimingChoice)
        found = timing.PROFILES[choice.profile]
    except (OSError, msgspec.MsgspecError, KeyError) as error:
        raise Invalid(f"{file} says no timing: {error}", hint="restore it from another member") from error
    return timing.checked(msgspec.structs.replace(found, stop_s=choice.stop_s))


def urls(paths: Paths, members: Mapping[str, Known]) -> list[str]:
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

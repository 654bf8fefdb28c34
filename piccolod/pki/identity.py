"""What a certificate says of a node: `piccolo://<cluster>/<node>?role=member`, as the one URI among its names. Pure.

Addresses come and go at home; nothing is decided by them. Who a peer is, is this identity and nothing else.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

import msgspec

from piccolod.errors import Forbidden, Invalid

_NODE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?")  # the rule of `node.name`
_CLUSTER: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_URI: Final = re.compile(r"piccolo://([^/?#]*)/([^/?#]*)\?role=([a-z]*)")
_JOIN: Final = "a node gets its certificate by `piccoloctl cluster join`"


class Role(StrEnum):
    MEMBER = "member"
    WITNESS = "witness"  # votes in etcd, runs no apps, gets no keys


class Identity(msgspec.Struct, frozen=True):
    """One node of one cluster."""

    cluster: str
    node: str
    role: Role = Role.MEMBER

    def __post_init__(self) -> None:
        """Raises Invalid for what could not be read back."""
        if not _CLUSTER.fullmatch(self.cluster):
            raise Invalid(f"{self.cluster[:80]!r} is not the id of a cluster", hint="letters, digits and hyphens, at most 64")
        if not _NODE.fullmatch(self.node):
            raise Invalid(
                f"{self.node[:80]!r} is not the name of a node", hint="lowercase letters, digits and hyphens, at most 50"
            )

    @property
    def uri(self) -> str:
        return f"piccolo://{self.cluster}/{self.node}?role={self.role}"

    def admitted(self, cluster: str, *roles: Role) -> Identity:
        """Itself, when it is of `cluster` and has one of `roles`. Raises Forbidden."""
        if self.cluster != cluster:
            raise Forbidden(f"{self.node} is of another cluster, {self.cluster}", hint=f"this is {cluster}")
        if self.role not in roles:
            raise Forbidden(f"{self.node} is a {self.role}: this is for a {' or '.join(roles)}", hint="ask on a member")
        return self


def parse(uri: str) -> Identity:
    """The inverse of `uri`. Raises Invalid."""
    match = _URI.fullmatch(uri)
    if match is None or match[3] not in Role.__members__.values():
        raise Invalid(f"{uri[:200]!r} is not the identity of a node", hint=_JOIN)
    return Identity(match[1], match[2], Role(match[3]))


def find(uris: list[str]) -> Identity:
    """The identity among the URIs of a certificate. Raises Invalid when there is none, or more than one."""
    ours = [uri for uri in uris if uri.startswith("piccolo:")]
    if len(ours) != 1:
        raise Invalid("a certificate of no node" if not ours else "a certificate of several nodes", hint=_JOIN)
    return parse(ours[0])

"""Commands of persistence about who belongs to the cluster: certificates of nodes, and the tokens that let new ones in.

Certificates, requests and keys are PEM. An authority is known by its fingerprint: SHA-256 of its certificate in hex.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Final

import msgspec

from piccolod.pki.identity import Role
from piccolod.protocol.base import Nothing, Request
from piccolod.protocol.unlocking import AutoUnlock

JOIN_PATH: Final = "/join"
TOKEN_S: Final = 3600.0
TOKEN_MOST_S: Final = 86_400.0


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    certificate: str
    ca: str


class IssueCertificate(Request[Issued], frozen=True, kw_only=True):
    """For the own node at `cluster init`, and for the renewal of a node that `nodes/<node>` lists with this key and role.

    On a node alone, asked by consensus, it makes this node the first member: one commit that lists it, and nobody else, and
    puts the setting `auto_unlock` where that is given.
    A renewal commits nothing and needs no leader: every unlocked member has the authority. NotFound: the node is not
    listed, or was removed. Forbidden: another key, another role. Locked.
    """

    command: ClassVar[str] = "persistence.issue_certificate"
    reply: ClassVar[type] = Issued
    csr: str
    node: str
    role: Role = Role.MEMBER
    address: str
    auto_unlock: AutoUnlock | None = None


class KeepCertificate(Request[Nothing], frozen=True, kw_only=True):
    """Puts the renewed certificate of this node in the place of its former one: it alone writes `state_dir/cluster`.

    Forbidden: it is not of this node, of its key, or of the authority that is there.
    """

    command: ClassVar[str] = "consensus.keep_certificate"
    reply: ClassVar[type] = Nothing
    certificate: str


class TokenState(StrEnum):
    OPEN = "open"
    USED = "used"
    EXPIRED = "expired"
    REVOKED = "revoked"


class JoinTokenView(msgspec.Struct, frozen=True, kw_only=True):
    """`node`: who used it."""

    id: str
    role: Role
    state: TokenState
    node: str
    author: str
    created_ms: int
    expires_ms: int


class JoinTokens(msgspec.Struct, frozen=True, kw_only=True):
    tokens: tuple[JoinTokenView, ...]


class GetJoinTokens(Request[JoinTokens], frozen=True, kw_only=True):
    """The open ones, and those that ended lately. Newest first."""

    command: ClassVar[str] = "persistence.join_tokens"
    reply: ClassVar[type] = JoinTokens


class NewJoinToken(msgspec.Struct, frozen=True, kw_only=True):
    """`token` is shown this once; what is kept is a digest."""

    id: str
    token: str
    role: Role
    expires_ms: int
    rev: int

    def __repr__(self) -> str:
        return f"NewJoinToken({self.id})"


class CreateJoinToken(Request[NewJoinToken], frozen=True, kw_only=True):
    """One token for one node. Conflict: this node is alone, there is nothing to join. Invalid: a life out of bounds."""

    command: ClassVar[str] = "persistence.create_join_token"
    reply: ClassVar[type] = NewJoinToken
    role: Role = Role.MEMBER
    ttl_s: float = TOKEN_S
    author: str


class Revoked(msgspec.Struct, frozen=True, kw_only=True):
    rev: int


class RevokeJoinToken(Request[Revoked], frozen=True, kw_only=True):
    """NotFound: there is no open token with this id."""

    command: ClassVar[str] = "persistence.revoke_join_token"
    reply: ClassVar[type] = Revoked
    id: str
    author: str


class ForgetNode(Request[Revoked], frozen=True, kw_only=True):
    """Takes a node off the list: its certificate counts no more, its name is free. One that is not on it is no error.

    `token`: the id of the one that it came with, for a node that was not let in after all: that token is open again.
    """

    command: ClassVar[str] = "persistence.forget_node"
    reply: ClassVar[type] = Revoked
    node: str
    author: str
    token: str = ""


class CheckNode(Request[Nothing], frozen=True, kw_only=True):
    """Whether a node is listed with this key, the SHA-256 of its public key in hex. Forbidden: it is not, or not any more."""

    command: ClassVar[str] = "persistence.check_node"
    reply: ClassVar[type] = Nothing
    node: str
    key: str


class Redeemed(msgspec.Struct, frozen=True, kw_only=True):
    """`again`: the node was let in before, and its answer lost."""

    cluster: str
    certificate: str
    ca: str
    rev: int
    again: bool = False


class JoinBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a node that is nobody yet brings to JOIN_PATH of a member, as JSON. Fields of a newer joiner are passed over.

    `spent`: the id of the member of etcd that ran on it under this token before, and whose data is gone; 0: none.
    `stop_s`: how fast it ends a container, as it measured.
    `etcd_id`: of the external etcd that it speaks to. 0: it brings a member of its own, which the URLs are of.
    """

    id: str
    secret: str
    node: str
    role: Role
    address: str
    csr: str
    rpc: str
    client_url: str
    peer_url: str
    api_url: str = ""
    spent: int = 0
    stop_s: float = 0.0
    etcd_id: int = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r}, node={self.node!r})"


class Redeem(JoinBody, Request[Redeemed], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node comes with a token: one commit that consumes it and lists the node as `nodes/<node>`.

    The same node with the same key and the same token again gets a certificate again, so that a lost answer costs nothing.
    Unauthenticated: no such token, or a wrong secret. Conflict: it was used by another node. Forbidden: it has expired, was
    revoked, or is for another role; or it has etcd kept another way than this cluster. Exists: another node has this name. Each
    with its own message and hint.
    """

    command: ClassVar[str] = "persistence.redeem"
    reply: ClassVar[type] = Redeemed

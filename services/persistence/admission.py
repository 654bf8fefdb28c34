"""Who may become a node of the cluster, and who is one: the rules for join tokens and for `nodes/<node>`. Pure.

What ends a certificate before its time is this list: a node counts while it is listed with the key that it shows. So a name
that was removed and given to another machine is of no use to the former one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

from piccolod.cluster_mode import Mode
from piccolod.errors import Conflict, Exists, Forbidden, Invalid, NotFound, StoreCorrupt, TooMany, Unauthenticated
from piccolod.pki import token as tokens
from piccolod.pki.identity import Role
from piccolod.protocol.joining import TOKEN_MOST_S, TokenState
from services.persistence.state import Document

NODES: Final = "nodes"
TOKENS: Final = "join_tokens"

TOKEN_LEAST_S: Final = 60.0
OPEN_MOST: Final = 64
# An ended token is kept so long that whoever tries it is told what became of it.
KEPT_MS: Final = 7 * 86_400_000
_ANOTHER: Final = "make one on a member: `piccoloctl cluster tokens create`"

T = TypeVar("T")


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`nodes/<node>`. `key`: SHA-256 of its public key in hex. `token`: the id of the one that let it in; none: the first."""

    role: Role
    address: str
    key: str
    joined_ms: int
    token: str = ""
    rpc: str = ""
    client_url: str = ""
    peer_url: str = ""


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`join_tokens/<id>`. `node` and `key`: who used it."""

    digest: str
    role: Role
    author: str
    created_ms: int
    expires_ms: int
    node: str = ""
    key: str = ""
    ended_ms: int = 0  # when it was used or revoked

    def state(self, now_ms: int) -> TokenState:
        if self.node:
            return TokenState.USED
        if self.ended_ms:
            return TokenState.REVOKED
        return TokenState.EXPIRED if now_ms >= self.expires_ms else TokenState.OPEN


def record(kind: type[T], found: Document | None, name: str) -> T | None:
    """A document as what it is. Raises StoreCorrupt."""
    if found is None:
        return None
    try:
        return msgspec.msgpack.decode(found.body, type=kind)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"{name} cannot be read: {error}") from None


def check_life(ttl_s: float) -> None:
    if not TOKEN_LEAST_S <= ttl_s <= TOKEN_MOST_S:
        raise Invalid(
            f"a join token lives {TOKEN_LEAST_S:g} s to {TOKEN_MOST_S / 3600:g} h, not {ttl_s:g} s",
            hint="it is for one node that joins now; make another one for the next",
        )


def check_room(known: Mapping[str, TokenRecord], now_ms: int) -> None:
    if sum(each.state(now_ms) is TokenState.OPEN for each in known.values()) >= OPEN_MOST:
        raise TooMany(f"{OPEN_MOST} join tokens are open", hint="revoke some: `piccoloctl cluster tokens revoke ID`")


def outlived(known: Mapping[str, TokenRecord], now_ms: int) -> list[str]:
    """Those that nobody will ask about any more."""
    return [id for id, each in known.items() if now_ms > max(each.ended_ms, each.expires_ms) + KEPT_MS]


def redeem(
    token: TokenRecord | None, secret: str, name: str, role: Role, key: str, listed: NodeRecord | None, now_ms: int
) -> bool:
    """Whether this very node was let in already, with this token. False: it may be let in now.

    Raises what is told to it. What became of a token is told only to those who have its secret.
    """
    if not tokens.fits(secret, token.digest if token else tokens.digest("")) or token is None:
        raise Unauthenticated("this join token is not one of this cluster", hint=f"see that it is the newest; {_ANOTHER}")
    if listed is not None and (token.node, token.key, listed.key, listed.role) == (name, key, key, role):
        return True
    match token.state(now_ms):
        case TokenState.USED:
            again = f"if its join failed, `piccoloctl nodes remove {name}` first; " if listed and token.node == name else ""
            raise Conflict(
                f"this join token was used already, by {token.node}", hint=f"each lets one node in; {again}{_ANOTHER}"
            )
        case TokenState.REVOKED:
            raise Forbidden("this join token was revoked", hint=_ANOTHER)
        case TokenState.EXPIRED:
            raise Forbidden("this join token has expired", hint=f"{_ANOTHER}, and see that the clocks are right")
    if token.role is not role:
        raise Forbidden(
            f"this join token is for a {token.role}, and {name} wants to be a {role}",
            hint="join with --witness, or make another token without it"
            if token.role is Role.WITNESS
            else "join without --witness, or make another token with it",
        )
    if listed is not None:
        raise Exists(
            f"{name} is the name of a node of this cluster, with another key",
            hint=f"give this one another node.name, or, if it is that node made anew: `piccoloctl nodes remove {name}` first",
        )
    return False


def reopened(token: TokenRecord | None, name: str, listed: NodeRecord | None) -> TokenRecord | None:
    """The token as it was before it let this very node in; None when it did not. It expires when it would have."""
    if token is None or listed is None or (token.node, token.key) != (name, listed.key):
        return None
    return msgspec.structs.replace(token, node="", key="", ended_ms=0)


def check_vote(role: Role, mode: Mode) -> None:
    """Raises Invalid for a witness where the nodes have no votes."""
    if role is Role.WITNESS and mode.is_external:
        raise Invalid(
            "a witness votes in the etcd that the nodes keep, and this cluster's is kept by its owner: there is none to give",
            hint="leave --witness out, or leave the node out",
        )


def check_etcd(name: str, etcd_id: int, mode: Mode) -> None:
    """`etcd_id`: see JoinBody. Raises Conflict for a node that would keep etcd another way than this cluster."""
    if mode.is_external and not etcd_id:
        raise Conflict(
            f"this cluster's etcd is kept by its owner, and {name} would bring a member of etcd of its own",
            hint=f'on {name}: [etcd] mode = "external", with the endpoints of that etcd and certificates, and restart piccolod',
        )
    if etcd_id and not mode.is_external:
        raise Conflict(
            f'the nodes of this cluster keep its etcd themselves, and {name} has etcd.mode = "external"',
            hint=f'on {name}: [etcd] mode = "auto", without endpoints and certificates, and restart piccolod',
        )


def check_renewal(name: str, role: Role, key: str, listed: NodeRecord | None) -> NodeRecord:
    """As it is listed. Raises NotFound, Forbidden."""
    if listed is None:
        raise NotFound(f"{name} is no node of this cluster, or was removed", hint="let it join again")
    if listed.key != key:
        raise Forbidden(f"{name} is listed with another key", hint="a renewal keeps the key; for another one let it join again")
    if listed.role is not role:
        raise Forbidden(
            f"{name} is listed as a {listed.role}, not as a {role}", hint="to change its role, remove it and let it join again"
        )
    return listed


def check_revocation(id: str, token: TokenRecord | None, now_ms: int) -> TokenRecord:
    """Raises NotFound, Conflict for one that let a node in."""
    if token is None:
        raise NotFound(f"there is no join token {id[:40]!r}", hint="`piccoloctl cluster tokens list` shows their ids")
    if token.state(now_ms) is TokenState.USED:
        raise Conflict(
            f"{token.node} was let in with this join token already",
            hint=f"to take it out: `piccoloctl nodes remove {token.node}`",
        )
    return token

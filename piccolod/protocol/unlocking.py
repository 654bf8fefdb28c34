"""How a locked member is unlocked by its peers: what the asking and the giving persistence, and consensus, say to each other.

    locked node                                    unlocked member
    persistence.ask_unlock -> the ask              api: certificate of a member that is listed
    api signs it with node.key, posts it  ----->   persistence.give_key: the rules -> consensus.grant_unlock -> the sealed key
    persistence.take_key: proves it, unlocks <--

The key of the store travels sealed to an X25519 key that lives for one ask. An ask is MessagePack of `UnlockAsk`, and these
very bytes are signed and bound into the seal.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Final

import msgspec

from piccolod.protocol.base import Nothing, Request
from piccolod.protocol.persistence import CryptoStatus

WITHIN_S: Final = 3600.0
PURPOSE: Final = "unlock 1"  # what a node signs an ask for, and the version of the seal


class AutoUnlock(StrEnum):
    """The setting `auto_unlock` of the cluster."""

    PEERS = "peers"
    NEVER = "never"


class UnlockSettings(msgspec.Struct, frozen=True):
    """What `settings/cluster` says of it. A store that says nothing gives nothing."""

    auto_unlock: AutoUnlock = AutoUnlock.NEVER
    auto_unlock_within_s: Annotated[float, msgspec.Meta(ge=60, le=30 * 86_400)] = WITHIN_S


class UnlockAsk(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks: a node, in one session of etcd and one boot. `public`: X25519, raw."""

    cluster: str
    node: str
    sid: int
    boot_id: str
    public: bytes


class SignedAsk(msgspec.Struct, frozen=True, kw_only=True):
    """`key`: the public key of the node's certificate, DER; `signature` of `ask` by it."""

    ask: bytes
    key: bytes
    signature: bytes


class SealedKey(msgspec.Struct, frozen=True, kw_only=True):
    """The key of the store for one ask. `public`: the giver's own X25519 key of this one answer."""

    giver: str
    public: bytes
    nonce: bytes
    sealed: bytes


class AskText(msgspec.Struct, frozen=True):
    """An encoded `UnlockAsk`."""

    ask: bytes


class AskUnlock(Request[AskText], frozen=True, kw_only=True):
    """A new ask of this node, which ends the former one. Conflict: it is not locked, or was locked on purpose.

    StoreUnavailable: it has no keyset, or no session in etcd yet.
    """

    command: ClassVar[str] = "persistence.ask_unlock"
    reply: ClassVar[type] = AskText


class GiveKey(Request[SealedKey], frozen=True, kw_only=True):
    """The key of the store for another member. Forbidden: the setting, the list of nodes or its absence speak against it.

    Locked. Conflict: another claimant of this name. StoreUnavailable, OutcomeUnknown: no grant could be committed.
    """

    command: ClassVar[str] = "persistence.give_key"
    reply: ClassVar[type] = SealedKey
    signed: SignedAsk


class TakeKey(Request[CryptoStatus], frozen=True, kw_only=True):
    """Unlocks this node with a key that was given for its last ask, once that opens its own keyset and log.

    Conflict: there is no such ask, or it was locked on purpose meanwhile. Forbidden: it is not this cluster's key.
    """

    command: ClassVar[str] = "persistence.take_key"
    reply: ClassVar[type] = CryptoStatus
    key: SealedKey


class GrantUnlock(Request[Nothing], frozen=True, kw_only=True):
    """Commits in etcd that this session of a node is given the key, and answers when it has outlived the commit.

    `known_ms`: when the node was let in, wall clock. Forbidden: it was not seen unlocked for `within_s`, or is no member.
    Conflict: the session is not the node's, or another machine took its name. StoreUnavailable, OutcomeUnknown.
    """

    command: ClassVar[str] = "consensus.grant_unlock"
    reply: ClassVar[type] = Nothing
    node: str
    sid: int
    boot_id: str
    within_s: float
    known_ms: int

"""Who is a member of etcd: listed, added as a learner, promoted to a voter, removed.

A cluster grows by learners alone: a voter that is added to a cluster of one stops all its writes until it runs (measured).
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from piccolod.errors import Busy, Invalid
from services.consensus.etcd.client import Client
from services.consensus.etcd.stubs import MEMBER_ADD, MEMBER_LIST, MEMBER_PROMOTE, MEMBER_REMOVE, newer_fields, rpc

# Fields of etcd 3.4, which these messages do not name: Member.isLearner, and MemberAddRequest.isLearner set to true.
_IS_LEARNER: Final = 5
_ADD_AS_LEARNER: Final = b"\x10\x01"
_ID_REMOVED: Final = "member not found"


class Member(Struct, frozen=True):
    """`name` is empty until it has started for the first time."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    learner: bool

    @classmethod
    def of(cls, wire: Any) -> Member:
        learner = bool(newer_fields(wire).get(_IS_LEARNER))
        return cls(wire.ID, wire.name, tuple(wire.peerURLs), tuple(wire.clientURLs), learner)


async def members(client: Client, within_s: float) -> tuple[Member, ...]:
    answered = await client.read(MEMBER_LIST, rpc.MemberListRequest(), within_s)
    return tuple(Member.of(each) for each in answered.message.members)


async def add_learner(client: Client, peer_urls: tuple[str, ...], within_s: float) -> Member:
    """Raises Busy while one more cannot be taken: 3.4 allows one learner, and none right after a start.

    Its id is a hash of its URLs and the second (membership.NewMember): within that in which such a one was removed it would get
    the id of the removed one, which etcd refuses for ever.
    """
    request = rpc.MemberAddRequest(peerURLs=peer_urls)
    request.MergeFromString(_ADD_AS_LEARNER)
    try:
        answered = await client.write(MEMBER_ADD, request, within_s)
    except Invalid as error:
        if _ID_REMOVED in error.detail:
            raise Busy(error.detail, hint="try again in a moment") from error
        raise
    return Member.of(answered.message.member)


async def promote(client: Client, member_id: int, within_s: float) -> None:
    """Makes a voter of a learner. Raises Busy until it has caught up with the leader."""
    await client.write(MEMBER_PROMOTE, MEMBER_PROMOTE.request(ID=member_id), within_s)


async def remove(client: Client, member_id: int, within_s: float) -> None:
    await client.write(MEMBER_REMOVE, rpc.MemberRemoveRequest(ID=member_id), within_s)

"""POST /join: a node that is nobody yet brings a token. The kernel's leader lets it in; any other member asks that one."""

from __future__ import annotations

from typing import Final

import msgspec

from piccolod import clock
from piccolod.errors import (
    Busy,
    DeadlineExceeded,
    Invalid,
    NoLeader,
    OutcomeUnknown,
    PeerRestarted,
    PiccoloError,
    StoreUnavailable,
    TooMany,
)
from piccolod.protocol.cluster import AddMember, Admission, Welcome
from piccolod.protocol.joining import JOIN_PATH, ForgetNode, GetJoinTokens, JoinBody, Redeem, TokenState
from services.api.core import Core
from services.api.patience import patiently
from services.api.rpc import wire
from services.api.rpc.app import Knock, Route
from services.api.rpc.client import Client
from services.api.rpc.pace import Pace
from services.api.rpc.places import Places

_BODY_BYTES: Final = 16 * 1024
_ANSWER_BYTES: Final = 1 << 20
# The joiner waits 45 s. etcd refuses a member change for 5 s after the last one.
_WITHIN_S: Final = 42.0
_ADMIT_S: Final = 35.0
_PROXY_S: Final = 40.0
_PAUSE_S: Final = 0.5
# However many knock, the tokens are looked up no more often than this.
_LOOK_S: Final = 1.0
# A node whose answer was lost comes again with the token that it has used.
_KNOWN: Final = (TokenState.OPEN, TokenState.USED)
# What may be otherwise in a moment; AddMember is the same the second time.
_PASSING: Final = (Busy, StoreUnavailable, OutcomeUnknown, DeadlineExceeded, PeerRestarted)


class Door:
    def __init__(self, core: Core, client: Client, places: Places) -> None:
        self._core = core
        self._client = client
        self._places = places
        self._pace = Pace()
        self._known: frozenset[str] = frozenset()  # the ids of tokens, as of the last look
        self._look_at = 0.0

    @property
    def route(self) -> Route:
        return Route(self._join, "application/json", _BODY_BYTES, _WITHIN_S)

    async def _join(self, knock: Knock) -> bytes:
        if knock.peer is None:
            await self._admit(knock)
        body = _decoded(knock.body)
        if not self._core.gate.holds("kernel"):
            return await self._ask_leader(knock)
        return msgspec.json.encode(await self._let_in(body))

    async def _admit(self, knock: Knock) -> None:
        """Raises TooMany. A full house still has a place for who names a token of this cluster."""
        try:
            self._pace.admit(knock.source, clock.now())
        except TooMany:
            if not await self._is_known(knock.body):
                raise
            self._pace.admit(knock.source, clock.now(), known=True)

    async def _is_known(self, body: bytes) -> bool:
        try:
            named = _decoded(body).id
        except Invalid:
            return False
        now = clock.now()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            try:
                found = await self._core.ask(GetJoinTokens())
            except PiccoloError as error:
                self._core.log.debug("could not look up the join tokens", reason=error.detail)
            else:
                self._known = frozenset(token.id for token in found.tokens if token.state in _KNOWN)
        return named in self._known

    async def _ask_leader(self, knock: Knock) -> bytes:
        leader = self._core.leader()
        if leader is None or knock.peer is not None:  # a member asked us for the leader: it is on its way somewhere else
            raise NoLeader("nobody is known to lead the cluster now", hint="try again in a moment", retry_after_s=1.0)
        return await self._client.post(
            self._places.of(leader), JOIN_PATH, knock.body, "application/json", timeout_s=_PROXY_S, most_bytes=_ANSWER_BYTES
        )

    async def _let_in(self, body: JoinBody) -> Welcome:
        redeem = Redeem(**msgspec.structs.asdict(body))
        redeemed = await self._core.order(redeem)
        try:
            admission = await self._admitted(body)
        except PiccoloError as error:
            if not redeemed.again:
                await self._forget(body, error)
            raise
        # Another attempt of the same node may have failed meanwhile, and taken it off the list.
        redeemed = await self._core.order(redeem)
        return Welcome(certificate=redeemed.certificate, ca=redeemed.ca, admission=admission)

    async def _admitted(self, body: JoinBody) -> Admission:
        asked = AddMember(
            node=body.node,
            role=body.role.value,
            address=body.address,
            client_url=body.client_url,
            peer_url=body.peer_url,
            rpc=body.rpc,
            api_url=body.api_url,
            spent=body.spent,
            stop_s=body.stop_s,
            etcd_id=body.etcd_id,
        )
        return await patiently(
            lambda left_s: self._core.order(asked, timeout_s=max(1.0, left_s)), _PASSING, _ADMIT_S, _PAUSE_S
        )  # fmt: skip

    async def _forget(self, body: JoinBody, why: PiccoloError) -> None:
        """The name is free and the token open again: the next attempt needs neither `nodes remove` nor another one."""
        node = body.node
        self._core.log.warning("could not admit a node to etcd", node=node, reason=why.detail)
        try:
            await self._core.order(ForgetNode(node=node, author=f"node:{node}", token=body.id))
        except PiccoloError as error:
            self._core.log.warning("could not take the node off the list again", node=node, reason=error.detail)


def _decoded(body: bytes) -> JoinBody:
    return wire.decoded(body, JoinBody, "request to join", msgspec.json.decode)

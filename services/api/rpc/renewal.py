"""Certificates that renew themselves at two thirds of their life: POST /renew for others, and the loop for this node.

A node asks the leader; the leader signs for itself. A node whose certificate has ended, since it was off for so long or since
clocks stood wrong, still may ask. It does not know who leads, for etcd does not take it any more: it asks one member after the
other, each of which has the list and the authority. When none can be reached it signs for itself, being unlocked: a cluster
whose certificates have all ended could otherwise never come back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from piccolod import clock
from piccolod.errors import Forbidden, Locked, NoLeader, OutcomeUnknown, PiccoloError, Unavailable
from piccolod.pki.authority import Signed
from piccolod.pki.identity import Role
from piccolod.protocol.joining import IssueCertificate, Issued, KeepCertificate
from services.api.core import Core
from services.api.rpc import wire
from services.api.rpc.app import Knock, Route
from services.api.rpc.client import Client, Place
from services.api.rpc.files import NodeFiles
from services.api.rpc.places import Places

PATH: Final = "/renew"
LOOK_S: Final = 60.0  # also how soon a certificate is taken up that somebody else has put there
AGAIN_S: Final = 5.0
# The others may just be starting, as this node is: one that was removed is told so by them, and must not help itself.
PATIENCE_S: Final = 60.0
_BODY_BYTES: Final = 16 * 1024
_ANSWER_BYTES: Final = 64 * 1024
_WITHIN_S: Final = 10.0


class RenewBody(msgspec.Struct, frozen=True):
    csr: str


class Renewal:
    """`fault` is told what is wrong with the certificate, and with "" that nothing is."""

    def __init__(
        self, core: Core, files: NodeFiles, client: Client, places: Places, fault: Callable[[str], None]
    ) -> None:  # fmt: skip
        self._core = core
        self._files = files
        self._client = client
        self._places = places
        self._fault = fault
        self._unheard_since: float | None = None  # since when nobody could be asked

    @property
    def route(self) -> Route:
        return Route(
            self._answer, "application/json", _BODY_BYTES, _WITHIN_S, roles=(Role.MEMBER, Role.WITNESS), ended=True
        )  # fmt: skip

    async def _answer(self, knock: Knock) -> bytes:
        """Whether it is still listed, with this very key, persistence looks at."""
        if knock.peer is None:
            raise Forbidden("this is for nodes of the cluster", hint="show the certificate of a node")
        body = wire.decoded(knock.body, RenewBody, "request for a certificate", msgspec.json.decode)
        order = IssueCertificate(csr=body.csr, node=knock.peer.node, role=knock.peer.role, address="")
        return msgspec.json.encode(await self._core.order(order))

    async def run(self) -> None:
        while True:
            fine = await self.once()
            await asyncio.sleep(LOOK_S if fine else AGAIN_S)

    async def once(self) -> bool:
        """Renews the certificate when it is time, and takes up one that is new. False when it could not; that is told."""
        try:
            self._files.look()
            signed = self._files.signed()
            if time.time() >= signed.renew_at():
                await self._renew(signed)
                self._files.look()
                signed = self._files.signed()
        except PiccoloError as error:
            self._core.log.debug("could not renew the certificate of this node", reason=error.detail)
            self._fault(f"the certificate of this node could not be renewed: {error.detail}")
            return False
        self._unheard_since = None
        self._fault("" if time.time() < signed.ends_s else "the certificate of this node has ended: see the clocks")
        return True

    async def _renew(self, signed: Signed) -> None:
        request = self._files.request()
        issued = await self._issued(signed, request)
        await self._core.order(KeepCertificate(certificate=issued.certificate))
        self._core.log.info("renewed the certificate of this node", ended=time.time() >= signed.ends_s)

    async def _issued(self, signed: Signed, request: str) -> Issued:
        own = IssueCertificate(
            csr=request, node=signed.identity.node, role=signed.identity.role, address=self._core.config.node.address
        )
        if self._core.gate.holds("kernel"):
            return await self._core.order(own)
        try:
            return await self._ask(signed, request)
        except (NoLeader, Unavailable, OutcomeUnknown) as error:
            now = clock.now()
            self._unheard_since = now if self._unheard_since is None else self._unheard_since
            if time.time() < signed.ends_s or now - self._unheard_since < PATIENCE_S:
                raise
            self._core.log.warning("signs its own certificate, for it has ended and nobody can be asked", reason=error.detail)
            return await self._core.order(own)

    async def _ask(self, signed: Signed, request: str) -> Issued:
        """Raises NoLeader, Unavailable, OutcomeUnknown when nobody answered; what they refused it with."""
        leader = self._core.leader()
        if leader is not None:
            return await self._ask_one(self._places.of(leader), request)
        if time.time() < signed.ends_s:
            raise NoLeader("nobody is known to lead the cluster now", hint="`piccoloctl why kernel` shows why")
        for place in self._places.members(but=signed.identity.node):
            try:
                return await self._ask_one(place, request)
            except (Unavailable, OutcomeUnknown, Locked) as error:
                self._core.log.debug("could not be asked for a certificate", node=place.node, reason=error.detail)
        raise NoLeader("no member of the cluster can be asked", hint="see that others run, are unlocked and can be reached")

    async def _ask_one(self, place: Place, request: str) -> Issued:
        body = msgspec.json.encode(RenewBody(request))
        answer = await self._client.post(
            place, PATH, body, "application/json", timeout_s=_WITHIN_S, most_bytes=_ANSWER_BYTES, ended=True
        )  # fmt: skip
        try:
            return msgspec.json.decode(answer, type=Issued)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise OutcomeUnknown(
                f"the answer of {place.node} is no certificate: {error}", hint="is it another piccolod?"
            ) from None

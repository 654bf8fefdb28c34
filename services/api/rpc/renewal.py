"""Certificates that renew themselves at two thirds of their life: POST /renew for others, and the loop for this node.

A node asks the leader; the leader signs for itself. A node whose certificate has ended, since it was off for so long or since
clocks stood wrong, still may ask, and when no leader can be reached it signs for itself, being unlocked: every member has the
authority, and a cluster whose certificates have all ended could otherwise never come back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from piccolod.errors import Forbidden, Invalid, NoLeader, PiccoloError
from piccolod.pki.authority import Signed
from piccolod.pki.identity import Role
from piccolod.protocol.joining import IssueCertificate, Issued, KeepCertificate
from services.api.core import Core
from services.api.rpc.app import Knock, Route
from services.api.rpc.client import Client
from services.api.rpc.files import NodeFiles
from services.api.rpc.places import Places

PATH: Final = "/renew"
LOOK_S: Final = 60.0  # also how soon a certificate is taken up that somebody else has put there
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

    @property
    def route(self) -> Route:
        return Route(
            self._answer, "application/json", _BODY_BYTES, _WITHIN_S, roles=(Role.MEMBER, Role.WITNESS), ended=True
        )  # fmt: skip

    async def _answer(self, knock: Knock) -> bytes:
        """Whether it is still listed, with this very key, persistence looks at."""
        if knock.peer is None:
            raise Forbidden("this is for nodes of the cluster")
        try:
            body = msgspec.json.decode(knock.body, type=RenewBody)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Invalid(f"this is no request for a certificate: {error}") from None
        order = IssueCertificate(csr=body.csr, node=knock.peer.node, role=knock.peer.role, address="")
        return msgspec.json.encode(await self._core.order(order))

    async def run(self) -> None:
        while True:
            await self.once()
            await asyncio.sleep(LOOK_S)

    async def once(self) -> None:
        """Renews the certificate when it is time, and takes up one that is new. Failures are told, and tried again."""
        try:
            self._files.look()
            signed = self._files.signed()
            if time.time() >= signed.renew_at():
                await self._renew(signed)
                self._files.look()
                signed = self._files.signed()
        except PiccoloError as error:
            self._core.log.warning("could not renew the certificate of this node", reason=error.detail)
            self._fault(f"the certificate of this node could not be renewed: {error.detail}")
        else:
            self._fault("" if time.time() < signed.ends_s else "the certificate of this node has ended: see the clocks")

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
            return await self._ask_leader(request)
        except PiccoloError as error:
            if time.time() < signed.ends_s or isinstance(error, Forbidden):
                raise
            self._core.log.warning("signs its own certificate, for it has ended", no_leader=error.detail)
            return await self._core.order(own)

    async def _ask_leader(self, request: str) -> Issued:
        leader = self._core.leader()
        if leader is None:
            raise NoLeader("nobody is known to lead the cluster now")
        body = msgspec.json.encode(RenewBody(request))
        answer = await self._client.post(
            self._places.of(leader), PATH, body, "application/json", timeout_s=_WITHIN_S, most_bytes=_ANSWER_BYTES, ended=True
        )
        return msgspec.json.decode(answer, type=Issued)

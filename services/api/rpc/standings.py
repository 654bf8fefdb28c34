"""POST /standing tells another member what this one has of the store and sees of etcd; `ask_all` asks every other one.

For the day on which there is no quorum: nothing here needs one, nor an unlocked store, nor a certificate that has not ended.
What is told is metadata (a rev, a digest), to whoever has a certificate of a member.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from piccolod.errors import PiccoloError
from piccolod.pki.identity import Role
from piccolod.protocol.recovery import GetLogEnd, GetStoreView, Heard, Standing
from services.api.core import Core
from services.api.rpc.app import Knock, Route
from services.api.rpc.client import Client, Place
from services.api.rpc.places import Places
from services.api.rpc.wire import MEDIA_TYPE

PATH: Final = "/standing"
_BODY_BYTES: Final = 1024
_ANSWER_BYTES: Final = 4 * 1024
_WITHIN_S: Final = 6.0
_ASK_S: Final = 8.0


class Standings:
    def __init__(self, core: Core, client: Client, places: Places) -> None:
        self._core = core
        self._client = client
        self._places = places

    @property
    def route(self) -> Route:
        return Route(self._tell, MEDIA_TYPE, _BODY_BYTES, _WITHIN_S, roles=(Role.MEMBER,), ended=True, audited=False)

    async def _tell(self, knock: Knock) -> bytes:
        return msgspec.msgpack.encode(await self._own())

    async def _own(self) -> Standing:
        node = self._core.config.node.name
        view = await self._core.ask(GetStoreView())
        try:
            end = await self._core.ask(GetLogEnd())
        except PiccoloError as error:  # a damaged log, or one that is being opened
            return Standing(node=node, view=view, problem=error.detail)
        return Standing(node=node, view=view, end=end)

    async def ask_all(self) -> tuple[Heard, ...]:
        """What came of asking every other member that can have a store, all at the same time."""
        places = self._places.members(but=self._core.config.node.name)
        return tuple(await asyncio.gather(*(self._ask(place) for place in places)))

    async def _ask(self, place: Place) -> Heard:
        try:
            answer = await self._client.post(
                place, PATH, b"", MEDIA_TYPE, timeout_s=_ASK_S, most_bytes=_ANSWER_BYTES, ended=True
            )  # fmt: skip
            standing = msgspec.msgpack.decode(answer, type=Standing)
        except PiccoloError as error:
            return Heard(node=place.node, silence=error.detail)
        except msgspec.MsgspecError as error:
            return Heard(node=place.node, silence=f"its answer cannot be read: {error}")
        return Heard(node=place.node, standing=standing)

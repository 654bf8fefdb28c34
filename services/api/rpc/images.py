"""POST /image gives a member an archive of an image that this node has; POST /image/take tells it to take one from the caller.

A node that lacks an image asks the others one after the other: it knows itself what it lacks, so whatever dies meanwhile is
asked again. What is sent is content of podman's store, which lies in clear there; only members get it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from piccolod import clock
from piccolod.errors import Failed, Forbidden, NotFound, PiccoloError, Unavailable
from piccolod.module import Caller
from piccolod.pki.identity import Role
from piccolod.protocol.apps import AddImage, ListImages
from piccolod.protocol.base import Nothing
from piccolod.protocol.images import ARCHITECTURE, BringImage, Handed, ImageOffered, ImageWanted, SaveImage
from services.api import uploads
from services.api.core import Core
from services.api.rpc.app import Knock, Route
from services.api.rpc.client import Client, Place
from services.api.rpc.places import Places
from services.api.rpc.wire import MEDIA_TYPE, decoded

PATH: Final = "/image"
TAKE_PATH: Final = "/image/take"
_ARCHIVE: Final = "application/x-tar"
_ID: Final = "sha256:"
_BODY_BYTES: Final = 256 * 1024  # the names of a thousand images
_LIST_S: Final = 15.0
_SAVE_S: Final = 610.0  # podman gives up before that
_BEGINS_S: Final = _SAVE_S + 10.0
_LOAD_S: Final = 900.0
_TAKE_S: Final = 1800.0


class _NotLoaded(Exception):
    """This node could not load what came."""

    def __init__(self, error: PiccoloError) -> None:
        super().__init__(error.detail)
        self.error = error


class Images:
    def __init__(self, core: Core, client: Client, places: Places) -> None:
        self._core = core
        self._client = client
        self._places = places
        self._bringing = asyncio.Lock()  # one at a time: each is an archive on this disk
        self._giving = asyncio.Lock()

    def serve(self) -> None:
        self._core.module.serve(BringImage, self._bring)

    @property
    def route(self) -> Route:
        return Route(self._give, _ARCHIVE, _BODY_BYTES, _BEGINS_S, roles=(Role.MEMBER,), audited=False)

    @property
    def take_route(self) -> Route:
        return Route(self._take, MEDIA_TYPE, _BODY_BYTES, _TAKE_S, roles=(Role.MEMBER,))

    async def push(self, image_id: str) -> tuple[Handed, ...]:
        """What became of telling every other member to take it from here, one after the other: this disk bears one archive."""
        places = self._places.members(but=self._core.config.node.name)
        return tuple([await self._offer(place, image_id) for place in places])

    async def _offer(self, place: Place, image_id: str) -> Handed:
        body = msgspec.msgpack.encode(ImageOffered(id=image_id))
        try:
            answer = await self._client.post(
                place, TAKE_PATH, body, MEDIA_TYPE, timeout_s=_TAKE_S, most_bytes=_BODY_BYTES
            )  # fmt: skip
            return msgspec.msgpack.decode(answer, type=Handed)
        except PiccoloError as error:
            return Handed(node=place.node, error=error.detail)
        except msgspec.MsgspecError as error:
            return Handed(node=place.node, error=f"its answer cannot be read: {error}")

    @asynccontextmanager
    async def _give(self, knock: Knock) -> AsyncIterator[Path]:
        """One at a time, until it was sent: however many nodes lack images, this disk bears one archive."""
        wanted = decoded(knock.body, ImageWanted, "request for an image", msgspec.msgpack.decode)
        async with self._giving:
            with self._core.module.busy(), uploads.draft(self._core.uploads_folder) as file:
                await self._core.order(SaveImage(wanted=wanted, file=str(file)), timeout_s=_SAVE_S)
                yield file

    async def _take(self, knock: Knock) -> bytes:
        if knock.peer is None:
            raise Forbidden("members alone hand images on")
        offered = decoded(knock.body, ImageOffered, "offer of an image", msgspec.msgpack.decode)
        node = self._core.config.node.name
        giver = next((each for each in self._places.members(but=node) if each.node == knock.peer.node), None)
        if giver is None:
            raise Unavailable(f"{node} does not know yet where {knock.peer.node} is", hint="try again in a moment")
        async with self._bringing:
            had = offered.id in await self._names()
            if not had:
                with self._core.module.busy():
                    try:
                        await self._from(giver, offered.id)
                    except _NotLoaded as failed:
                        raise failed.error from failed
        return msgspec.msgpack.encode(Handed(node=node, had=had))

    async def _names(self) -> frozenset[str]:
        """And ids, of what this node has."""
        images = (await self._core.ask(ListImages(), timeout_s=_LIST_S)).images
        return frozenset(name for each in images for name in (each.id, *each.names))

    # --- this node lacks one

    async def _bring(self, request: BringImage, caller: Caller) -> Nothing:
        places = self._places.members(but=self._core.config.node.name)
        random.shuffle(places)
        refused: list[tuple[str, PiccoloError]] = []
        async with self._bringing:
            if clock.now() > caller.deadline_at or request.name in await self._names():
                return Nothing()  # nobody waits for it, or it came meanwhile: another app needs it, too
            for place in places:
                try:
                    await self._from(place, request.name)
                except _NotLoaded as failed:
                    raise failed.error from failed  # the archive of another one would be the same
                except PiccoloError as error:
                    refused.append((place.node, error))
                else:
                    return Nothing()
        raise _none_gave(request.name, refused)

    async def _from(self, place: Place, name: str) -> None:
        """Raises what that node refused it with, Failed when it sent another one."""
        core = self._core
        known = tuple(sorted(each for each in await self._names() if not each.startswith(_ID)))
        # It lies there while podman unpacks it, by default on the same disk.
        room_bytes = await asyncio.to_thread(uploads.room_bytes, core.uploads_folder) // 2
        wanted = ImageWanted(name=name, architecture=ARCHITECTURE, room_bytes=room_bytes, known=known)
        body = msgspec.msgpack.encode(wanted)
        async with self._client.fetch(place, PATH, body, MEDIA_TYPE, begins_s=_BEGINS_S) as answer:
            async with uploads.received(answer.parts, answer.size_bytes, core.uploads_folder) as file:
                try:
                    added = await core.order(AddImage(kind="load", file=str(file)), timeout_s=_LOAD_S)
                except PiccoloError as error:
                    raise _NotLoaded(error) from error
        if name.startswith(_ID) and name not in {each.id for each in added.images}:
            raise Failed(f"{place.node} sent another image for {name}", hint="ask it with `piccoloctl images list` there")
        core.log.info("took an image from another node", image=name, node=place.node, bytes=answer.size_bytes)


def _none_gave(name: str, refused: list[tuple[str, PiccoloError]]) -> PiccoloError:
    if not refused:
        return Unavailable("no other node is known", hint="see `piccoloctl cluster list`")
    if all(isinstance(error, NotFound) for _, error in refused):
        return NotFound(f"no other node has image {name}", hint="`piccoloctl images load` on any node brings it")
    told = "; ".join(f"{node}: {error.detail}" for node, error in refused if not isinstance(error, NotFound))
    return Unavailable(f"no other node gave image {name}: {told}", hint="it is tried again")

"""What people ask of the images on this node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from piccolod.errors import Invalid
from piccolod.module import Caller
from piccolod.protocol.apps import AddImage, ImageDocument, ImageDocuments, ListImages, PruneImages
from piccolod.protocol.base import Nothing
from piccolod.protocol.images import SaveImage
from services.apps.app import App
from services.apps.checks import CHECKS
from services.apps.images import reference, with_prefix
from services.apps.node import Node
from services.apps.podman import PodmanError
from services.apps.uploads import Archive, uploaded


class ImageCommands:
    def __init__(self, node: Node, apps: dict[str, App], unlocked: Callable[[], Awaitable[None]]) -> None:
        """`unlocked` raises Locked. Images are each node's own: none needs the kernel's leader."""
        self._node, self._apps, self._unlocked = node, apps, unlocked

    def serve(self) -> None:
        serve = self._node.module.serve
        serve(ListImages, self.list)
        serve(AddImage, self.add)
        serve(PruneImages, self.prune)
        serve(SaveImage, self.save)

    async def list(self, request: ListImages, caller: Caller) -> ImageDocuments:
        return await self._documents(None)

    async def add(self, request: AddImage, caller: Caller) -> ImageDocuments:
        await self._unlocked()
        if request.kind not in ("load", "import", "build"):
            raise Invalid(f"{request.kind!r} is no way to add an image", hint="load, import, build")
        if request.kind != "load":
            _check_name(request.name)
        with uploaded(Path(request.file), self._node.module.paths.uploads) as file:
            ids = await self._node.images.add(request.kind, file, request.name)
        return await self._documents(ids)

    async def save(self, request: SaveImage, caller: Caller) -> Nothing:
        await self._unlocked()
        _check_name(request.wanted.name)
        archive = Archive(Path(request.file), self._node.module.paths.uploads)
        await self._node.images.save(request.wanted, archive)
        return Nothing()

    async def prune(self, request: PruneImages, caller: Caller) -> ImageDocuments:
        await self._unlocked()
        desired = [app.stored.desired for app in self._apps.values()]
        versions = [one for each in desired for one in (each.current, each.previous, each.candidate) if one is not None]
        needed = {with_prefix(version.image_id) for version in versions} | {reference(one.manifest) for one in versions}
        gone = []
        for image in (await self._documents(None)).images:
            if (image.names and not request.unused) or not needed.isdisjoint((image.id, *image.names)):
                continue
            try:
                await self._node.images.remove(image.id, image.names)
            except PodmanError:
                continue  # a container or another image stands on it
            gone.append(image)
        return ImageDocuments(images=tuple(gone))

    async def _documents(self, ids: Sequence[str] | None) -> ImageDocuments:
        users: dict[str, list[str]] = {}
        for name, app in self._apps.items():
            for version in (app.stored.desired.current, app.stored.desired.candidate):
                if version is not None and version.image_id:
                    users.setdefault(with_prefix(version.image_id), []).append(name)
        documents = []
        for found in await self._node.images.listed():
            image_id = with_prefix(str(found["Id"]))
            if ids is None or image_id in ids:
                documents.append(
                    ImageDocument(
                        id=image_id,
                        names=tuple(found.get("Names") or found.get("RepoTags") or ()),
                        size_bytes=int(found.get("Size") or 0),
                        created_ms=int(found.get("Created") or 0) * 1000,
                        used_by=tuple(sorted(set(users.get(image_id, ())))),
                    )
                )
        return ImageDocuments(images=tuple(documents))


def _check_name(name: str) -> None:
    try:
        CHECKS["image"](name)
    except ValueError as error:
        raise Invalid(str(error)) from None

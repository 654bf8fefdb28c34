"""Container images of this node."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from litestar.params import FromPath, FromQuery, QueryParameter

from piccolod.errors import Busy, Conflict, NotFound, StoreFull, TooMany
from piccolod.protocol.apps import AddImage, ImageDocument, ListImages, PruneImages
from piccolod.protocol.images import Handed
from services.api import uploads
from services.api.actor import Scope
from services.api.asked import BASE, Req, core_of
from services.api.endpoint import COMMIT, TAR, endpoint

_ADD_S: Final = 900.0
_PRUNE_S: Final = 120.0


class ImageKind(StrEnum):
    LOAD = "load"  # an OCI or docker archive
    IMPORT = "import"  # a root file system
    BUILD = "build"  # a tar with a Containerfile


@endpoint("GET", f"{BASE}/images", scope=Scope.READ, tag="images")
async def list_images(request: Req) -> tuple[ImageDocument, ...]:
    """The images that apps can run without a registry."""
    return (await core_of(request).ask(ListImages(), timeout_s=15.0)).images


@endpoint(
    "POST", f"{BASE}/images", scope=Scope.WRITE, accepts=TAR, status=201, fails=(StoreFull, TooMany, Busy), tag="images",
    body_bytes=uploads.MAX_BYTES, raw_body={"type": "string", "format": "binary"},
)  # fmt: skip
async def add(
    request: Req, kind: FromQuery[ImageKind] = ImageKind.LOAD, name: Annotated[str, QueryParameter(max_length=255)] = ""
) -> tuple[ImageDocument, ...]:
    """Loads, imports or builds an image from the archive in the body. `name` is needed for `import` and `build`."""
    core = core_of(request)
    with core.uploads.seat():
        async with uploads.received(request.stream(), request.content_length, core.uploads_folder) as file:
            order = AddImage(kind=kind.value, file=str(file), name=name)
            return (await core.order(order, timeout_s=_ADD_S)).images


@endpoint("POST", f"{BASE}/images/prune", scope=Scope.WRITE, fails=COMMIT, leads=False, tag="images")
async def prune(
    request: Req,
    unused: Annotated[bool, QueryParameter(description="Images with a name too, when no app needs them.")] = False,
) -> tuple[ImageDocument, ...]:
    """Removes images without a name that no app needs, nor could revert to; the answer names what is gone."""
    return (await core_of(request).order(PruneImages(unused=unused), timeout_s=_PRUNE_S)).images


@endpoint("POST", f"{BASE}/images/{{id:str}}/push", scope=Scope.WRITE, fails=(NotFound, Conflict), leads=False, tag="images")
async def push(request: Req, id: FromPath[str]) -> tuple[Handed, ...]:
    """Every other node of the cluster that lacks this image takes it from this one. What became of it on each."""
    core = core_of(request)
    image_id = f"sha256:{id.removeprefix('sha256:')}"
    listed = (await core.ask(ListImages(), timeout_s=15.0)).images
    if image_id not in [each.id for each in listed]:
        raise NotFound(f"this node has no image {id[:80]}", hint="`piccoloctl images list` shows what it has")
    if core.images is None:
        raise Conflict("this node is in no cluster: there is nobody to push it to", hint="`piccoloctl cluster init`")
    return await core.images.push(image_id)


ROUTES = (list_images, add, prune, push)

"""Images between the nodes of a cluster: who lacks one takes it from who has it."""

from __future__ import annotations

import platform
from typing import ClassVar, Final

import msgspec

from piccolod.protocol.base import Nothing, Request

_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}
ARCHITECTURE: Final = _ARCHITECTURES.get(platform.machine(), platform.machine())  # of this machine, in OCI's words


class ImageWanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a node asks another one for. `name` is a reference or an id, `architecture` what can run here, in OCI's words."""

    name: str
    architecture: str


class ImageOffered(msgspec.Struct, frozen=True, kw_only=True):
    """What a node tells another one to take from it."""

    id: str


class BringImage(Request[Nothing], frozen=True, kw_only=True):
    """Loads an image here that another node has. NotFound where none has it; else what came last of asking them."""

    command: ClassVar[str] = "api.bring_image"
    reply: ClassVar[type] = Nothing
    wanted: ImageWanted


class SavedImage(msgspec.Struct, frozen=True, kw_only=True):
    """`file` is in `state_dir/uploads`; who asked for it removes it."""

    file: str


class SaveImage(Request[SavedImage], frozen=True, kw_only=True):
    """An archive of an image of this node, with all its names. NotFound; Conflict for another architecture; StoreFull."""

    command: ClassVar[str] = "apps.save_image"
    reply: ClassVar[type] = SavedImage
    wanted: ImageWanted


class Handed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one node that was told to take an image. `had`: it had it already. `error` empty: it has it now."""

    node: str
    had: bool = False
    error: str = ""

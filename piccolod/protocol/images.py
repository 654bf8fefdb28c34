"""Images between the nodes of a cluster: who lacks one takes it from who has it."""

from __future__ import annotations

import platform
from typing import ClassVar, Final

import msgspec

from piccolod.protocol.base import Nothing, Request

_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}
ARCHITECTURE: Final = _ARCHITECTURES.get(platform.machine(), platform.machine())  # of this machine, in OCI's words


class ImageWanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a node asks another one for. `name` is a reference or an id, `architecture` what can run here, in OCI's words.

    `room_bytes`: the largest that there is room for. `known`: names of its own images, which it keeps for these.
    """

    name: str
    architecture: str
    room_bytes: int
    known: tuple[str, ...] = ()


class ImageOffered(msgspec.Struct, frozen=True, kw_only=True):
    """What a node tells another one to take from it."""

    id: str


class BringImage(Request[Nothing], frozen=True, kw_only=True):
    """Loads an image here that another node has, by its name or id. NotFound where none has it, else Unavailable."""

    command: ClassVar[str] = "api.bring_image"
    reply: ClassVar[type] = Nothing
    name: str


class SaveImage(Request[Nothing], frozen=True, kw_only=True):
    """Writes an archive of an image of this node, with its names that are not known where it goes, into `file`.

    That is below state_dir/uploads, made by the api, removed by it afterwards. NotFound; Conflict for another architecture;
    StoreFull where there is no room for it, here or there.
    """

    command: ClassVar[str] = "apps.save_image"
    reply: ClassVar[type] = Nothing
    wanted: ImageWanted
    file: str


class Handed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one node that was told to take an image. `had`: it had it already. `error` empty: it has it now."""

    node: str
    had: bool = False
    error: str = ""

"""What to do about a volume, decided from what is seen: pure functions, no I/O.

The invariant: **one writer**. The process that encrypts a volume (gocryptfs) holds the volume's lock for as long as it
lives, so the kernel itself refuses a second one, whoever died when. Everything below is about being right and being clear
before that last gate is hit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from piccolod.errors import Invalid, NotSupported
from piccolod.units import format_size

_NAME: Final = re.compile(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?")

# Below this ext4 has no room for a journal beside the files.
MIN_LIMIT_BYTES: Final = 8 * 2**20


@dataclass(frozen=True, slots=True, order=True)
class VolumeId:
    """Names a volume of an app. `str()` is its folder's name and its key on the bus."""

    app: str
    volume: str

    def __str__(self) -> str:
        return f"{self.app}.{self.volume}"

    @classmethod
    def checked(cls, app: str, volume: str) -> VolumeId:
        """Raises Invalid: the names become paths, so nothing but the manifest's own alphabet passes."""
        for kind, name in (("app", app), ("volume", volume)):
            if not _NAME.fullmatch(name):
                raise Invalid(f"{name!r} is not the name of {'an app' if kind == 'app' else 'a volume'}")
        return cls(app, volume)

    @classmethod
    def of_folder(cls, name: str) -> VolumeId | None:
        """The volume of a folder, or None for what is not one (a half-made or half-deleted volume)."""
        app, dot, volume = name.partition(".")
        return cls(app, volume) if dot and _NAME.fullmatch(app) and _NAME.fullmatch(volume) else None


class Body(StrEnum):
    """What holds the ciphertext."""

    TREE = "tree"  # a folder of the host's file system: as large as the disk
    IMAGE = "image"  # an ext4 image in a sparse file: the limit is its size, and the kernel enforces it


@dataclass(frozen=True, slots=True)
class Seen:
    """A volume as the kernel shows it right now."""

    process: int = 0  # the living gocryptfs, 0 = none
    mounted: bool = False  # the mount of plain text is in place
    image_mounted: bool = False


class State(StrEnum):
    DETACHED = "no"
    ATTACHED = "rw"
    STARTING = "starting"  # gocryptfs lives, the mount is not there yet
    HELD = "held"  # our mount is gone, but somebody else's copy of it keeps gocryptfs alive
    DEAD = "dead"  # the mount is there and nobody serves it: every access fails with ENOTCONN
    HALF = "half"  # only the image is mounted


def state_of(seen: Seen, *, was_mounted: bool) -> State:
    """`was_mounted`: the journal says that the mount was in place once."""
    if seen.process:
        if seen.mounted:
            return State.ATTACHED
        return State.HELD if was_mounted else State.STARTING
    if seen.mounted:
        return State.DEAD
    return State.HALF if seen.image_mounted else State.DETACHED


@dataclass(frozen=True, slots=True)
class Shape:
    """The body of a volume and its limit; `warning` says why a wished limit is not enforced."""

    body: Body
    limit_bytes: int
    warning: str = ""


def shape_for(limit_bytes: int, no_images: str, *, strict: bool) -> Shape:
    """How a wished limit is kept. `no_images`: why this host cannot mount images, or empty.

    Raises Invalid, and NotSupported where the host cannot enforce the limit and `[apps] strict` asks for it.
    """
    if limit_bytes < 0:
        raise Invalid(f"size_limit must not be negative: {limit_bytes}")
    if limit_bytes == 0:
        return Shape(Body.TREE, 0)
    if limit_bytes < MIN_LIMIT_BYTES:
        raise Invalid(f"size_limit must be at least {format_size(MIN_LIMIT_BYTES)}, not {format_size(limit_bytes)}")
    if not no_images:
        return Shape(Body.IMAGE, limit_bytes // 4096 * 4096)
    if strict:
        raise NotSupported(
            f"size_limit {format_size(limit_bytes)} cannot be enforced on this host: {no_images}",
            hint="give the host what is missing, drop size_limit, or set strict = false under [apps] to run without it",
        )
    return Shape(Body.TREE, limit_bytes, warning=f"size_limit is not enforced: {no_images}")


class Change(StrEnum):
    """What turns an existing volume into the wished one."""

    NONE = "none"
    NOTE = "note"  # only the description changes
    GROW = "grow"  # in place, also while attached
    REBUILD = "rebuild"  # a new body beside the old one, switched in atomically; detached only


def change(now: Shape, wished: Shape) -> Change:
    if now == wished:
        return Change.NONE
    if now.body is not wished.body:
        return Change.REBUILD
    if now.body is Body.TREE:
        return Change.NOTE
    return Change.GROW if wished.limit_bytes > now.limit_bytes else Change.REBUILD


def describe(shape: Shape) -> str:
    """The `quota` of `volumes list`."""
    if shape.warning:
        return shape.warning
    if shape.body is Body.IMAGE:
        return "enforced: the volume is an image of this size"
    return "no limit"


def overcommitted(promised_bytes: int, stored_bytes: int, free_bytes: int) -> str:
    """A warning when the volumes may still grow by more than the disk has left, else empty.

    Images are sparse: where the disk fills first, an app's write fails before its own limit is reached.
    """
    missing = promised_bytes - stored_bytes - free_bytes
    if missing <= 0:
        return ""
    return f"volumes may grow by {format_size(promised_bytes - stored_bytes)}, the disk has {format_size(free_bytes)} left"

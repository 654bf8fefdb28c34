"""Commands of volumes: encrypted folders of apps."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from piccolod.protocol.base import Nothing, Request


class VolumeDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`attached` is rw, ro or no. A volume outlives its app, unless that is purged: `apps` says which are installed."""

    app: str
    name: str
    attached: str
    path: str  # of the mount; empty when detached
    size_limit_bytes: int  # 0 = none
    used_bytes: int
    quota: str  # how the limit is enforced, or why it is not


class VolumeDocuments(msgspec.Struct, frozen=True, kw_only=True):
    volumes: tuple[VolumeDocument, ...]


class Ensure(Request[VolumeDocument], frozen=True, kw_only=True):
    """The volume exists with this limit (0 = none). Grows or shrinks the limit of one that exists. Idempotent."""

    command: ClassVar[str] = "volumes.ensure"
    reply: ClassVar[type] = VolumeDocument
    app: str
    volume: str
    size_limit_bytes: int = 0


class Attach(Request[VolumeDocument], frozen=True, kw_only=True):
    """Plain text appears under `path`. The gate of `app:<app>` must hold `token`, before the mount and after. Idempotent."""

    command: ClassVar[str] = "volumes.attach"
    reply: ClassVar[type] = VolumeDocument
    app: str
    volume: str
    token: int


class Detach(Request[Nothing], frozen=True, kw_only=True):
    """Idempotent. Busy when something still uses the mount: then nothing is released."""

    command: ClassVar[str] = "volumes.detach"
    reply: ClassVar[type] = Nothing
    app: str
    volume: str


class ListVolumes(Request[VolumeDocuments], frozen=True, kw_only=True):
    command: ClassVar[str] = "volumes.list"
    reply: ClassVar[type] = VolumeDocuments
    app: str | None = None


class MakeKeys(Request[Nothing], frozen=True, kw_only=True):
    """Makes the keys of volumes that have none yet. Where documents can be written; NotLeader elsewhere."""

    command: ClassVar[str] = "volumes.make_keys"
    reply: ClassVar[type] = Nothing
    app: str
    volumes: tuple[str, ...]


class Purge(Request[Nothing], frozen=True, kw_only=True):
    """Deletes the detached volumes of one app that are here, and their keys. Nothing else is ever deleted.

    A node that does not lead the kernel leaves the keys to the one that does: `volumes` names those that may be elsewhere.
    """

    command: ClassVar[str] = "volumes.purge"
    reply: ClassVar[type] = Nothing
    app: str
    volumes: tuple[str, ...] = ()

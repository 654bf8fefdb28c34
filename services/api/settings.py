"""Choices of the whole cluster, sealed in the control store as `settings/cluster`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from piccolod.errors import Forbidden, NotFound
from piccolod.protocol.persistence import Read
from piccolod.protocol.unlocking import WITHIN_S, AutoUnlock

if TYPE_CHECKING:
    from services.api.core import Core

COLLECTION: Final = "settings"
ID: Final = "cluster"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every field has a default. `title` is what people call this installation; `session_hours` how long a login lasts.

    `admin_from_nodes`: the nodes whose root is admin of the whole cluster, whichever leads; null: all that are no witness.
    `auto_unlock`: whether a member that restarts is unlocked by its `peers`; `auto_unlock_within_s`: for so long after it was
    last seen unlocked. `cluster init` puts `peers` there; what is left out is `never`.
    """

    title: Annotated[str, msgspec.Meta(max_length=100)] = ""
    session_hours: Annotated[int, msgspec.Meta(ge=1, le=720)] = 12
    admin_from_nodes: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=50)], ...], msgspec.Meta(max_length=64)] | None = (
        None
    )
    auto_unlock: AutoUnlock = AutoUnlock.NEVER
    auto_unlock_within_s: Annotated[float, msgspec.Meta(ge=60, le=30 * 86_400)] = WITHIN_S


class SettingsDocument(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    session_hours: int
    admin_from_nodes: tuple[str, ...] | None
    auto_unlock: AutoUnlock
    auto_unlock_within_s: float
    generation: int  # the rev of the last change; 0 = all defaults


async def read(core: Core) -> tuple[Settings, int]:
    """The settings in force and their generation. Fields of a newer version are passed over."""
    try:
        found = await core.ask(Read(collection=COLLECTION, id=ID))
    except NotFound:
        return Settings(), 0
    known = {name: found.body[name] for name in Settings.__struct_fields__ if name in found.body}
    return msgspec.convert(known, Settings), found.generation


async def check_admin(core: Core, node: str) -> None:
    """Whether the root of a member may change what all share. Raises Forbidden."""
    found, _ = await read(core)
    if found.admin_from_nodes is not None and node not in found.admin_from_nodes:
        raise Forbidden(
            f"the admin of {node} is not one of the cluster",
            hint=f"use a token or the dashboard, or name {node} in the setting admin_from_nodes on a node that it names",
        )

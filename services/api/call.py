"""What is known of the call that is being answered. One object a request, in the scope's state."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from piccolod.errors import LeaderHint
from services.api.actor import NOBODY, Actor
from services.api.origin import Origin

if TYPE_CHECKING:
    from services.api.core import Core


@dataclass(frozen=True, slots=True)
class Via:
    """The call came to another node, which passed it on. `as_root`: by the unix socket there, from uid 0."""

    node: str
    as_root: bool
    source: str
    secure: bool


@dataclass(slots=True)
class Call:
    request_id: str
    origin: Origin
    actor: Actor = NOBODY
    code: str = ""  # of the error, for the audit
    via: Via | None = None
    elsewhere: LeaderHint | None = None  # the node that has to answer, once that turned out
    held: ExitStack = field(default_factory=ExitStack)  # until it is answered


def core_of(connection: Any) -> Core:
    """What the node that answers this request stands on."""
    core: Core = connection.scope["state"]["core"]
    return core


def call_of(connection: Any) -> Call:
    """The call of a litestar request."""
    call: Call = connection.scope["state"]["call"]
    return call

"""Every event on the bus. Events are hints: who acts on one reads the source of truth again."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from piccolod.protocol.base import Event, Level


class LockStateChanged(Event, frozen=True, kw_only=True):
    """The control store was locked or unlocked. Emitted by persistence."""

    type: ClassVar[str] = "LockStateChanged"
    locked: bool
    initialized: bool
    rev: int
    reason: str = ""


class LeadershipRoleChanged(Event, frozen=True, kw_only=True):
    """This node's role for a resource changed. Emitted by consensus. `url`: the API of the node that leads it, `peer`: the
    `HOST:PORT` of its tunnel; empty on a node alone, and where it is not known."""

    type: ClassVar[str] = "LeadershipRoleChanged"
    resource: str
    role: str
    node: str
    address: str
    epoch: int
    token: int
    reason: str
    url: str = ""
    peer: str = ""

    def key(self) -> str:
        return self.resource


class ControlRevChanged(Event, frozen=True, kw_only=True):
    """The leader announced a rev: a hint and nothing more. Emitted by consensus."""

    type: ClassVar[str] = "ControlRevChanged"
    rev: int


class ControlStoreCommit(Event, frozen=True, kw_only=True):
    """The local rev advanced and was verified here: reconcile now. Emitted by persistence."""

    type: ClassVar[str] = "ControlStoreCommit"
    rev: int
    collections: tuple[str, ...] = ()


class ModuleStateChanged(Event, frozen=True, kw_only=True):
    """A module started, got ready, died, hangs. Emitted by the supervisor, through the broker."""

    type: ClassVar[str] = "ModuleStateChanged"
    module: str
    state: str
    pid: int
    instance: str
    restarts: int
    reason: str

    def key(self) -> str:
        return self.module


class HealthChanged(Event, frozen=True, kw_only=True):
    """A component's own judgement of itself. A role is never a warning."""

    type: ClassVar[str] = "HealthChanged"
    component: str
    level: Level
    reason: str = ""
    role: str = ""

    def key(self) -> str:
        return self.component


class AppStateChanged(Event, frozen=True, kw_only=True):
    type: ClassVar[str] = "AppStateChanged"
    app: str
    state: str
    reason: str
    generation: int = 0
    removed: bool = False

    def key(self) -> str:
        return self.app


class RouteChanged(Event, frozen=True, kw_only=True):
    type: ClassVar[str] = "RouteChanged"
    app: str
    mode: str
    epoch: int
    reason: str
    worker: str

    def key(self) -> str:
        return self.app


class VolumeStateChanged(Event, frozen=True, kw_only=True):
    type: ClassVar[str] = "VolumeStateChanged"
    app: str
    volume: str
    attached: str
    reason: str = ""

    def key(self) -> str:
        return f"{self.app}.{self.volume}"


class NodeStateChanged(Event, frozen=True, kw_only=True):
    type: ClassVar[str] = "NodeStateChanged"
    node: str
    state: str
    reason: str = ""

    def key(self) -> str:
        return self.node


class Audit(Event, frozen=True, kw_only=True):
    """A management call, accepted or refused. No secrets in it."""

    type: ClassVar[str] = "Audit"
    retained: ClassVar[bool] = False
    actor: str
    source: str
    action: str
    status: int
    code: str
    request_id: str


class Beat(Event, frozen=True, kw_only=True):
    """Each second from the broker: the last topic_seq of each topic. The only thing that shows loss at the tail."""

    type: ClassVar[str] = "Beat"
    retained: ClassVar[bool] = False
    last: dict[str, int]


def _event_types() -> dict[str, type[Event]]:
    return {kind.type: kind for kind in Event.__subclasses__()}


EVENTS: dict[str, type[Event]] = _event_types()


def as_mapping(event: Event) -> dict[str, Any]:
    """The event's fields, for journals and streams."""
    built: dict[str, Any] = msgspec.to_builtins(event)
    return built

"""The states of a container, in podman's words."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final


class Status(StrEnum):
    CREATED = "created"
    INITIALIZED = "initialized"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    EXITED = "exited"
    REMOVING = "removing"  # podman was killed while it took it away: it can only be removed once more
    UNKNOWN = "unknown"

    @property
    def has_processes(self) -> bool:
        return self in (Status.INITIALIZED, Status.RUNNING, Status.PAUSED, Status.STOPPING, Status.UNKNOWN)


_OTHER_NAMES: Final = {"configured": Status.CREATED, "stopped": Status.EXITED}


def status_of(found: dict[str, Any]) -> Status:
    """From an inspection or an entry of the list."""
    state = found["State"]
    text = str(state["Status"] if isinstance(state, dict) else state)
    if text in _OTHER_NAMES:
        return _OTHER_NAMES[text]
    return Status(text) if text in set(Status) else Status.UNKNOWN

"""What is known of a resource's leadership, as one immutable value."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from piccolod.leadership.roles import Reason


class TermState(StrEnum):
    OPEN = "open"
    CLOSING = "closing"  # being stopped: nothing of it starts, nobody else may have it yet
    RELEASED = "released"


class TermRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The newest term of a resource. `token` names it on this node, `(gen, epoch)` everywhere."""

    resource: str
    gen: int
    epoch: int
    token: int
    sid: int
    node: str
    state: TermState
    reason: Reason  # of its beginning, or once released of its end
    since_ms: int
    closing_at: float | None = None

    @property
    def held(self) -> bool:
        return self.state is not TermState.RELEASED


class ChangeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One change of leadership. Empty node: nobody. `phases` in milliseconds."""

    resource: str
    epoch: int
    at_ms: int
    from_node: str
    to_node: str
    reason: Reason
    phases: dict[str, float]

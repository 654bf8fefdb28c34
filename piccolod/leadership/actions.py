"""What the leadership core asks for. `core` says how each is executed, and that the order of a list is a rule."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from piccolod.leadership.events import Memory, PageState
from piccolod.leadership.roles import Reason
from piccolod.leadership.transactions import Outcome, Transaction


class Ended(StrEnum):
    """Why a session or a term is over here. The texts are what people read."""

    DEADLINE = "no heartbeat was committed in time"
    SESSION_GONE = "the session was ended in etcd"
    OTHER_GEN = "the store was begun anew"
    RESTORED = "etcd was restored: its revisions went back"
    PAGE_REFUSED = "a deadline passed before the page showed the next one"
    SUPERSEDED = "another term has begun"
    RELEASED = "it was released"
    HANDED_OVER = "it was handed over"
    NOT_RESUMED = "an earlier session of this boot could not be resumed"
    LEFT = "this node leaves"


# What a person can do once RESTORED is told; docs/how-to.md goes on from here.
RESTORED_HINT: Final = (
    "this member leads nothing and believes nothing of that etcd: take it out on a healthy member "
    "(`piccoloctl nodes remove`), then `piccoloctl cluster leave --force` and join it anew; "
    "where no member is healthy, `piccoloctl cluster recover` says what can be kept"
)


class Remember(msgspec.Struct, frozen=True):
    """Write this to `state_dir` and sync it before anything else is done."""

    memory: Memory


class WritePage(msgspec.Struct, frozen=True):
    """Put this on the page. If it refuses, `PageRefused` is the next event."""

    page: PageState


class Send(msgspec.Struct, frozen=True):
    """Try the transaction once, at whichever endpoint works; `Answered` with the same id, after `timeout_s` at the latest."""

    id: int
    transaction: Transaction
    timeout_s: float


class Read(msgspec.Struct, frozen=True):
    """Read the whole prefix, linearizable, once; `ReadAnswered` with the same id, after `timeout_s` at the latest."""

    id: int
    timeout_s: float


class GrantLease(msgspec.Struct, frozen=True):
    """Get a lease and keep it alive each `h`, until `LeaseLost` is fed or `RevokeLease` asked; answered by `LeaseGranted`."""

    ttl_s: int


class RevokeLease(msgspec.Struct, frozen=True):
    lease_id: int


class Prove(msgspec.Struct, frozen=True):
    """Feed `Stopped(id)` once nothing of the resource lives here and none of its starts is in flight."""

    id: int
    resource: str
    token: int


class Opened(msgspec.Struct, frozen=True):
    """The term is on the page: act. Also when an aborted handover opens it again, and after a restart within the term.

    After a restart `reason` is always `bootstrap`: why the term began is in `lead/<resource>`.
    `took_s`: since this node saw that nobody holds it, or that it is offered this node; 0: it did not see that.
    """

    resource: str
    gen: int
    epoch: int
    token: int
    reason: Reason
    took_s: float = 0.0


class Closing(msgspec.Struct, frozen=True):
    """The term is closing on the page: stop politely."""

    resource: str
    token: int


class Over(msgspec.Struct, frozen=True):
    """The term has left the page."""

    resource: str
    token: int
    why: Ended


class SessionOpened(msgspec.Struct, frozen=True):
    sid: int


class SessionOver(msgspec.Struct, frozen=True):
    sid: int
    why: Ended


class SwitchoverFailed(msgspec.Struct, frozen=True):
    """The handover will not happen; `Opened` follows when the resource is led here again."""

    resource: str
    op: str


class Proposed(msgspec.Struct, frozen=True):
    """What became of a proposal; `rev` is etcd's revision of the commit."""

    proposal: int
    outcome: Outcome
    rev: int


class Alarm(msgspec.Struct, frozen=True):
    """A person has to know, and to act."""

    text: str


Action = (
    Remember | WritePage | Send | Read | GrantLease | RevokeLease | Prove | Opened | Closing | Over
    | SessionOpened | SessionOver | SwitchoverFailed | Proposed | Alarm
)  # fmt: skip

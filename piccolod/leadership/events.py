"""What the leadership core is told. Each event is one fact; `core` says who feeds which, and when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from piccolod.leadership.roles import Reason
from piccolod.leadership.transactions import Compare, Outcome, Put
from piccolod.leadership.view import Change, Record


class Header(msgspec.Struct, frozen=True):
    """What every answer of etcd carries: which etcd it is, and its revision."""

    cluster_id: int
    rev: int


# --- the process and its node


class Memory(msgspec.Struct, frozen=True):
    """What a node keeps in `state_dir` of the etcd that it knew. `restored`: and that it has lost it."""

    cluster_id: int
    rev: int
    gen: int
    restored: bool = False


class PageTerm(msgspec.Struct, frozen=True):
    """A term as the page shows it."""

    token: int
    epoch: int
    closing: bool


class PageState(msgspec.Struct, frozen=True):
    """What the page shows: `Page` without what only its readers need."""

    gen: int
    sid: int
    lease_id: int
    soft_at: float
    hard_at: float
    terms: Mapping[str, PageTerm]


class Started(msgspec.Struct, frozen=True):
    """Consensus has started. The page is `None` if it is absent, torn or of an earlier boot; the memory at the first start.

    `running` names every resource of which something may live on this node, whoever started it.
    """

    boot_id: str
    page: PageState | None
    memory: Memory | None
    running: tuple[str, ...]


class Tick(msgspec.Struct, frozen=True):
    """Time has passed. `supervisor_at` is when the supervisor last showed that it acts."""

    supervisor_at: float


class PageRefused(msgspec.Struct, frozen=True):
    """The page did not take what it was to show: a deadline had passed meanwhile."""


class Stopped(msgspec.Struct, frozen=True):
    """The answer to `Prove`: nothing of the resource lives here, and none of its starts is in flight."""

    id: int


class Applied(msgspec.Struct, frozen=True):
    """The control store stands at this rev here."""

    rev: int


# --- etcd


class Answered(msgspec.Struct, frozen=True):
    """The answer to `Send`. Without one within the timeout the outcome is unknown and there is no header."""

    id: int
    outcome: Outcome
    header: Header | None


class ReadAnswered(msgspec.Struct, frozen=True):
    """The answer to `Read`: all records of the prefix, linearizable; without header if there was none in time."""

    id: int
    header: Header | None
    records: Mapping[str, Record[Any]]


class Watched(msgspec.Struct, frozen=True):
    """The watch delivered every change of the prefix in the revisions `after + 1 ... header.rev`, each revision whole."""

    after: int
    header: Header
    changes: tuple[Change, ...]


class Overheard(msgspec.Struct, frozen=True):
    """The header of an answer to something that the core did not ask for; it may be no older than `least`."""

    header: Header
    least: int


class LeaseGranted(msgspec.Struct, frozen=True):
    """The answer to `GrantLease`; `lease_id` is 0 if it failed."""

    lease_id: int


class LeaseLost(msgspec.Struct, frozen=True):
    """etcd says that this lease is gone."""

    lease_id: int


# --- requests from above


class Members(msgspec.Struct, frozen=True):
    """The app nodes of the cluster, this one included: the control store's list."""

    nodes: frozenset[str]


class Campaign(msgspec.Struct, frozen=True):
    """Lead the resource whenever nobody does, `delay_s` after that was seen. Sent again, it changes the delay."""

    resource: str
    reason: Reason = Reason.BOOTSTRAP
    delay_s: float = 0.0


class Campaigns(msgspec.Struct, frozen=True):
    """`Campaign` and `Withdraw` for many at once: seconds of delay by resource, and what is wanted no more."""

    delays: Mapping[str, float]
    withdrawn: frozenset[str] = frozenset()


class Withdraw(msgspec.Struct, frozen=True):
    """Campaign no more. A term that is held goes on."""

    resource: str


class Close(msgspec.Struct, frozen=True):
    """Mark the term closing: nothing of it starts any more. It stays held until `Release`."""

    resource: str
    token: int


class Release(msgspec.Struct, frozen=True):
    """Close the term, and end it once its effects are proven stopped."""

    resource: str
    token: int
    reason: Reason


class Switchover(msgspec.Struct, frozen=True):
    """Hand the resource over to a node; back to open here if that is not done at `give_up_at`."""

    resource: str
    to: str
    address: str
    op: str
    reason: Reason
    give_up_at: float


class CancelSwitchover(msgspec.Struct, frozen=True):
    resource: str


class Propose(msgspec.Struct, frozen=True):
    """A write of the kernel's leader under the token that its gate gave; the core adds the guard.

    `proposal` comes back in `Proposed`.
    """

    proposal: int
    token: int
    compares: tuple[Compare, ...]
    puts: tuple[Put, ...]
    deletes: tuple[str, ...] = ()


class Pause(msgspec.Struct, frozen=True):
    """While on, nothing moves between nodes: neither claims nor handovers, and nobody's session is expired."""

    on: bool


class Leave(msgspec.Struct, frozen=True):
    """Release everything, then end the session for good."""


Event = (
    Started | Tick | PageRefused | Stopped | Applied | Answered | ReadAnswered | Watched | Overheard | LeaseGranted
    | LeaseLost | Members | Campaign | Campaigns | Withdraw | Close | Release | Switchover | CancelSwitchover | Propose | Pause
    | Leave
)  # fmt: skip

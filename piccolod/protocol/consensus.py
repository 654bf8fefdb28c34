"""Commands of consensus: who leads what. Whether this node leads *now* is read from the page, not asked here."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from piccolod.leadership.placement import Standing
from piccolod.protocol.base import Nothing, Request


class Term(msgspec.Struct, frozen=True, kw_only=True):
    """What a campaign won. The page carries the same token before the reply is sent."""

    resource: str
    gen: int
    epoch: int
    token: int


class Standings(msgspec.Struct, frozen=True, kw_only=True):
    """By node and app. Empty on a node alone."""

    nodes: dict[str, dict[str, Standing]]


class Campaign(Request[Term], frozen=True, kw_only=True):
    """Lead `resource`. Idempotent: the holder gets its term again. Busy while it is closing; NotLeader: another has it.

    In a cluster also NoLeader (nobody has it, and this node neither for now) and StoreUnavailable; asking each second is what
    keeps this node a candidate for `kernel`. Of an app it only waits: `Stand` makes a candidate, and before that it is Busy.
    `cluster`: of `kernel`, where its store commits, empty on its own disk alone; Conflict unless this node is in that very
    cluster, for who started before that changed must not write any more.
    """

    command: ClassVar[str] = "consensus.campaign"
    reply: ClassVar[type] = Term
    resource: str
    reason: str = "bootstrap"
    cluster: str = ""


class Stand(Request[Nothing], frozen=True, kw_only=True):
    """How this node stands to every app that is wanted. Sent each second, and at once when it changes.

    Where it may lead an app, it does so whenever nobody else does and the assignment names it. What is not named any more, and
    all of it 3 s after the last word, is not claimed. On a node alone it changes nothing: there a campaign is always granted.
    """

    command: ClassVar[str] = "consensus.stand"
    reply: ClassVar[type] = Nothing
    apps: dict[str, Standing]


class TellPhases(Request[Nothing], frozen=True, kw_only=True):
    """When an app, in the term of this token, was attached, started, ready and routed, on this machine's CLOCK_BOOTTIME.

    For the history alone. Of a term that is over, or on a node alone, it changes nothing.
    """

    command: ClassVar[str] = "consensus.tell_phases"
    reply: ClassVar[type] = Nothing
    resource: str
    token: int
    at: dict[str, float]


class GetStandings(Request[Standings], frozen=True, kw_only=True):
    """How every node in session stands to each app: as of its last word, which is a second old or two."""

    command: ClassVar[str] = "consensus.standings"
    reply: ClassVar[type] = Standings


class Closing(Request[Nothing], frozen=True, kw_only=True):
    """Marks the resource `closing` on the page: nothing starts it again in this term. Idempotent."""

    command: ClassVar[str] = "consensus.closing"
    reply: ClassVar[type] = Nothing
    resource: str
    token: int


class Withdraw(Request[Nothing], frozen=True, kw_only=True):
    """Ends the term. Only after every effect is proven stopped. Idempotent; an older token than the current is no-op."""

    command: ClassVar[str] = "consensus.withdraw"
    reply: ClassVar[type] = Nothing
    resource: str
    token: int
    reason: str = "released"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    eligible: bool
    reason: str


class Leadership(msgspec.Struct, frozen=True, kw_only=True):
    """`deadline_s`: seconds left to D_hard; null when the term never runs out (one node). `url`: the API of `node`."""

    resource: str
    role: str
    node: str
    address: str
    epoch: int
    token: int
    since_ms: int
    reason: str
    deadline_s: float | None
    candidates: tuple[Candidate, ...] = ()
    url: str = ""


class Leaderships(msgspec.Struct, frozen=True, kw_only=True):
    leaderships: tuple[Leadership, ...]


class GetLeadership(Request[Leaderships], frozen=True, kw_only=True):
    """All resources known here, or the one named (NotFound)."""

    command: ClassVar[str] = "consensus.leadership"
    reply: ClassVar[type] = Leaderships
    resource: str | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One line of history. `phases` in milliseconds."""

    resource: str
    epoch: int
    at_ms: int
    from_node: str
    to_node: str
    reason: str
    phases: dict[str, float]


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    changes: tuple[Change, ...]


class GetHistory(Request[Changes], frozen=True, kw_only=True):
    """Newest first."""

    command: ClassVar[str] = "consensus.history"
    reply: ClassVar[type] = Changes
    resource: str | None = None
    limit: int = 50


class Why(msgspec.Struct, frozen=True, kw_only=True):
    leadership: Leadership
    explanation: str  # one sentence for a person
    history: tuple[Change, ...]


class GetWhy(Request[Why], frozen=True, kw_only=True):
    command: ClassVar[str] = "consensus.why"
    reply: ClassVar[type] = Why
    resource: str


class Switchover(Request[Leadership], frozen=True, kw_only=True):
    """A planned handover to `to`, or to the best candidate. NotFound: no such node. Exists: it leads already.

    Conflict: this node is alone, the target cannot take it, or did not in time. NotLeader: ask who leads. OutcomeUnknown.
    """

    command: ClassVar[str] = "consensus.switchover"
    reply: ClassVar[type] = Leadership
    resource: str
    to: str = ""


class Pause(Request[Nothing], frozen=True, kw_only=True):
    """While on, nothing moves between nodes: neither takeovers nor switchovers. On any member.

    Conflict: this node is alone. NoLeader: this member has no session now. StoreUnavailable; OutcomeUnknown: ask again.
    """

    command: ClassVar[str] = "consensus.pause"
    reply: ClassVar[type] = Nothing
    on: bool
    author: str = ""


class DrainNode(Request[Nothing], frozen=True, kw_only=True):
    """While on, a node hands over what it leads and takes nothing over: before it is switched off. On any member.

    NotFound: no such node. Conflict: this node is alone, that one is a witness, or nobody is there to take over. As `Pause`.
    """

    command: ClassVar[str] = "consensus.drain_node"
    reply: ClassVar[type] = Nothing
    node: str
    on: bool
    author: str = ""


class Release(Request[Leadership], frozen=True, kw_only=True):
    """Gives leadership away. Conflict: no other node can take it."""

    command: ClassVar[str] = "consensus.release"
    reply: ClassVar[type] = Leadership
    resource: str

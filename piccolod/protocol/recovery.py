"""A cluster that lost its etcd for good is begun anew from one member: what each member has, and the order to do it.

consensus serves it; the api asks the other members for their `Standing` and brings what they said.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

import msgspec

from piccolod.protocol.base import Request
from piccolod.protocol.log import SealedEntry


class LogEnd(msgspec.Struct, frozen=True, kw_only=True):
    """Where the log of a node ends, verified: with every seal, or while locked as far as digests show.

    `at_ms`: when its last entry was written, by the wall clock of who wrote it; 0 for an empty log.
    """

    rev: int
    digest: bytes
    gen: int
    epoch: int
    at_ms: int
    locked: bool


class GetLogEnd(Request[LogEnd], frozen=True, kw_only=True):
    """StoreCorrupt, StoreUnavailable: there is none that can be vouched for."""

    command: ClassVar[str] = "persistence.log_end"
    reply: ClassVar[type] = LogEnd


class TakeEntries(Request[LogEnd], frozen=True, kw_only=True):
    """What this member's own etcd has beyond the log here: those that follow its end and prove themselves are taken.

    `keyset`: the file's text, taken when it is newer and proven. Answers where the log ends then. Locked, StoreFull.
    """

    command: ClassVar[str] = "persistence.take_entries"
    reply: ClassVar[type] = LogEnd
    entries: tuple[SealedEntry, ...] = ()
    keyset: bytes = b""


class Store(StrEnum):
    """What a member sees of its etcd."""

    ANSWERS = "answers"  # with its quorum, and it is the one that was known
    SILENT = "silent"  # no quorum answers
    UNKNOWN = "unknown"  # the member has just started: its etcd had no time to answer yet
    RECOVERING = "recovering"  # the member leads nothing any more, and begins the cluster anew
    RESTORED = "restored"  # it is another one, or older than what was seen: nobody believes it


class StoreView(msgspec.Struct, frozen=True, kw_only=True):
    """`gen`: the life of the store that this member knows. `log_rev`: how far its own etcd has the log, for all it is worth.

    `unread`: it has such an etcd, and that does not answer; `log_rev` is 0 then.
    """

    store: Store
    gen: int
    log_rev: int = 0
    unread: bool = False


class GetStoreView(Request[StoreView], frozen=True, kw_only=True):
    command: ClassVar[str] = "consensus.store_view"
    reply: ClassVar[type] = StoreView


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One member's answer to another one. `end` None: its log cannot be vouched for, and `problem` says why."""

    node: str
    view: StoreView
    end: LogEnd | None = None
    problem: str = ""


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What came of asking a member: its standing, or why there is none."""

    node: str
    standing: Standing | None = None
    silence: str = ""


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """`done` False: what would be. `lost`: sentences for a person on what this node does not have.

    `former`: the other members, which are none afterwards. `at_ms` as of `LogEnd`.
    """

    node: str
    done: bool
    rev: int
    at_ms: int
    former: tuple[str, ...]
    lost: tuple[str, ...]


class Recover(Request[Recovery], frozen=True, kw_only=True):
    """Makes this member the first and only one of the cluster, with an etcd of its own and the log that it has.

    Without `force` it says what that would be, and changes nothing of the cluster: what its own etcd has beyond the log here is
    taken either way. With it the modules restart right after the answer.
    Conflict: nothing is to be recovered, another member has more, or something still acts here. Busy: this member or another
    one does not know yet whether etcd answers, or is being recovered. Locked: the log cannot be proven. `heard`: of every other
    member that can have a store.
    """

    command: ClassVar[str] = "consensus.recover"
    reply: ClassVar[type] = Recovery
    heard: tuple[Heard, ...]
    force: bool = False

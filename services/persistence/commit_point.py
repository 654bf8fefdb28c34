"""Where a batch becomes true: on this node's disk, or in the log of the cluster. One interface for both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from piccolod.errors import TermOver
from piccolod.leadership.gate import Token
from services.persistence.ledger import Batch


class Gatekeeper(Protocol):
    """The part of `piccolod.leadership.gate.Gate` that is used here."""

    def check(self, resource: str) -> Token: ...
    def still(self, resource: str, token: Token) -> None: ...


class HeadMoved(Exception):
    """Nothing was written: the log had grown. The ledger stands at its end now, so the writes are decided again."""


class CommitPoint(Protocol):
    """All of a batch becomes durable and then visible, or none of it."""

    @property
    def in_doubt(self) -> bool:
        """Something was sent whose end is not known yet."""

    @property
    def proves_term(self) -> bool:
        """A write that was taken proves that its term was not over: whoever took it compared the token."""

    async def settle(self) -> None:
        """Before a batch is decided: finds out about what is in doubt. Raises while that cannot be known."""

    async def stand_at_head(self, token: Token) -> None:
        """Before a batch is decided in this term: the ledger has all that was ever committed."""

    async def write(self, batch: Batch, token: Token) -> None:
        """Commits and folds. Raises HeadMoved, NotLeader, StoreFull, StoreUnavailable, StoreCorrupt: nothing was written;
        TermOver: nobody may be told that it was; OutcomeUnknown: it may have been, or may be yet."""

    async def snapshot_when_due(self) -> None: ...

    async def recover(self, wanted: Callable[[], bool]) -> None:
        """Asks a disk that refused a write again, and says so while that is `wanted`."""

    def refusal(self, over: TermOver) -> Exception:
        """What a write is told that met a shut gate: TermOver itself, or a reason that misleads less."""

    async def close(self) -> None:
        """Lets go of the disk, once nothing is under way any more."""

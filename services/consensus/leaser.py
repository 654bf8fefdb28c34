"""What consensus asks of whatever keeps leadership: one small interface, a static twin for a node alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from piccolod.leadership.placement import Standing
from piccolod.leadership.records import ChangeRecord, TermRecord
from piccolod.leadership.roles import Reason
from piccolod.protocol.consensus import Candidate


class Place(msgspec.Struct, frozen=True):
    """Where a node is found; empty where that is not known. `peer`: the `HOST:PORT` of its tunnel."""

    address: str
    url: str
    peer: str = ""


class Leaser(Protocol):
    """Terms are durable before they open, and shut before they end.

    `epoch` grows by one with each term of a resource, `token` grows with everything; neither is ever used twice, whatever
    crashes. The deadline page follows every method before it returns. Raises StoreUnavailable, StoreFull or StoreCorrupt
    when the store of terms refuses.
    """

    async def open(self) -> None:
        """Resumes this node's session if it is still the same boot, with the very terms it had; else begins a new one."""

    def records(self) -> Mapping[str, TermRecord]:
        """The newest term of every resource that was ever led, as of the last method that returned."""

    def hard_at(self, record: TermRecord) -> float:
        """D_hard of a term that is held; `clock.FOREVER` when it does not run out."""

    def place(self, node: str) -> Place: ...

    def nodes(self) -> Mapping[str, str]:
        """Each node that is known: empty, or why nothing is heard of it."""

    def candidates(self, resource: str) -> tuple[Candidate, ...]:
        """Every node that is known, and whether it could take the resource over now."""

    async def campaign(self, resource: str, reason: Reason) -> TermRecord:
        """Leads the resource, or goes on leading it in the same term. Raises Busy while it is closing.

        NotLeader, which names who, when another node leads it; NoLeader when nobody does, and this node neither for now.
        """

    def stand(self, apps: Mapping[str, Standing]) -> None:
        """How this node stands to every app, for the next 3 s."""

    def standings(self) -> Mapping[str, Mapping[str, Standing]]:
        """How every node in session stands to each app, by node."""

    async def close(self, resource: str, token: int) -> None:
        """Marks the term closing: from now on nothing of it starts, also after restarts. A term that is over stays so."""

    async def release(self, resource: str, token: int, reason: Reason) -> None:
        """Ends the term; others may have the resource. Only after every effect of it is proven stopped."""

    async def tell_phases(self, resource: str, token: int, at: Mapping[str, float]) -> None:
        """When an app got how far in a term, for the history."""

    async def switchover(self, resource: str, to: str) -> None:
        """Hands the resource over to a node, empty: to the best one. Returns when that one has it.

        Raises NotFound for a node that is not there, Exists when it leads already, Conflict when it cannot take it.
        """

    async def give_away(self, resource: str) -> None:
        """Somebody else shall lead it. Raises Conflict when nobody can."""

    async def pause(self, on: bool, author: str) -> None:
        """While on, nothing moves between nodes. Raises Conflict where there are no others."""

    async def drain(self, node: str, on: bool, author: str) -> None:
        """While on, the node hands over what it leads, and takes nothing over. Raises Conflict where there are no others."""

    def trouble(self) -> str:
        """What keeps it from its work; empty when nothing does."""

    async def history(self, resource: str | None, limit: int) -> tuple[ChangeRecord, ...]:
        """The last changes, newest first."""

    async def leave(self) -> None:
        """All modules of this node stop: what nothing acts for any more is given to others, where there are some."""

    async def end(self) -> None:
        """Lets go of files and connections. Ends no term."""

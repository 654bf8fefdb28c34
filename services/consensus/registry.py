"""Who leads what, as people and other modules see it: pure functions over the terms."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from piccolod.leadership.records import TermRecord, TermState
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.roles import Role
from piccolod.protocol.base import Event
from piccolod.protocol.consensus import Leadership
from piccolod.protocol.events import LeadershipRoleChanged, NodeStateChanged
from services.consensus.leaser import Leaser


class Registry:
    """Remembers what was announced, so that each change is announced once and a restart repeats instead of flapping."""

    def __init__(self, node: str, leaser: Leaser) -> None:
        self._node = node
        self._leaser = leaser
        self._announced: dict[tuple[str, str], Event] = {}

    def news(self) -> list[Event]:
        """The events that are due."""
        events: list[Event] = [
            NodeStateChanged(node=node, state="silent" if why else "alive", reason=why)
            for node, why in self._leaser.nodes().items()
        ]
        events += [self._event(record) for record in self._leaser.records().values()]
        due = [event for event in events if self._announced.get((event.type, event.key())) != event]
        self._announced.update(((event.type, event.key()), event) for event in due)
        return due

    def leadership(self, record: TermRecord, now: float) -> Leadership:
        held, place = leads(record), self._leaser.place(record.node)
        hard_at = self._leaser.hard_at(record)
        return Leadership(
            resource=record.resource,
            role=self._role(record),
            node=record.node if held else "",
            address=place.address if held else "",
            epoch=record.epoch,
            token=record.token if held else 0,
            since_ms=record.since_ms,
            reason=record.reason,
            deadline_s=None if not held or hard_at == float("inf") else max(0.0, hard_at - now),
            candidates=self._leaser.candidates(record.resource),
            url=place.url if held else "",
        )

    def nobody(self, resource: str) -> Leadership:
        """For a resource that was never led."""
        return Leadership(
            resource=resource, role=Role.FOLLOWER, node="", address="", epoch=0, token=0, since_ms=0, reason="",
            deadline_s=None, candidates=self._leaser.candidates(resource),
        )  # fmt: skip

    def _event(self, record: TermRecord) -> LeadershipRoleChanged:
        held, place = leads(record), self._leaser.place(record.node)
        return LeadershipRoleChanged(
            resource=record.resource,
            role=self._role(record),
            node=record.node if held else "",
            address=place.address if held else "",
            epoch=record.epoch,
            token=record.token if held else 0,
            reason=record.reason,
            url=place.url if held else "",
            peer=place.peer if held else "",
        )

    def _role(self, record: TermRecord) -> Role:
        return Role.LEADER if leads(record) and record.node == self._node else Role.FOLLOWER


def leads(record: TermRecord) -> bool:
    """An app is led until it has stopped. A closing `kernel` takes no write any more, and may stay so for as long as the
    disk does not take the end of its term."""
    return record.state is TermState.OPEN or (record.held and record.resource != RESOURCE_KERNEL)


def listed(records: Iterable[TermRecord]) -> list[TermRecord]:
    """What is led, the kernel first. An app that is gone has left its last epoch behind, which is no one's business."""
    return sorted(
        (record for record in records if record.held), key=lambda record: (record.resource != RESOURCE_KERNEL, record.resource)
    )


def explanation(leadership: Leadership, closing: bool) -> str:
    """One sentence for a person."""
    if leadership.epoch == 0:
        return f"Nobody has led {leadership.resource} yet."
    at = (
        datetime.fromtimestamp(leadership.since_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if leadership.since_ms else ""
    )
    if closing and not leadership.node:
        begun = f", begun at {at}," if at else ""
        return f"Nobody leads {leadership.resource}: epoch {leadership.epoch}{begun} is being closed."
    if not leadership.node:
        ended = f"ended at {at}" if at else "ended"  # a holder that is lost leaves no record of when
        return f"Nobody leads {leadership.resource}: epoch {leadership.epoch} {ended} ({leadership.reason})."
    since = f" since {at}" if at else ""
    begun = f"{leadership.node} leads {leadership.resource} in epoch {leadership.epoch}{since} ({leadership.reason})"
    if closing:
        return f"{begun}; the term is being closed."
    if leadership.deadline_s is None:
        return f"{begun}; the term does not run out, for nobody else could take over."
    return f"{begun}; {leadership.deadline_s:.1f} s to the deadline."

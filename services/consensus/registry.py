"""Who leads what, as people and other modules see it: pure functions over the terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from piccolod.leadership.records import TermRecord, TermState
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.roles import Role
from piccolod.protocol.consensus import Candidate, Leadership
from piccolod.protocol.events import LeadershipRoleChanged


class Registry:
    """Remembers what was announced, so that each change is announced once and a restart repeats instead of flapping."""

    def __init__(self, node: str, address: str) -> None:
        self._node = node
        self._address = address
        self._announced: dict[str, LeadershipRoleChanged] = {}

    def news(self, records: Mapping[str, TermRecord]) -> list[LeadershipRoleChanged]:
        """The events that are due."""
        events = [self._event(record) for record in records.values()]
        due = [event for event in events if self._announced.get(event.resource) != event]
        self._announced.update((event.resource, event) for event in due)
        return due

    def leadership(self, record: TermRecord, hard_at: float, now: float) -> Leadership:
        leads = _leads(record)
        return Leadership(
            resource=record.resource,
            role=self._role(record),
            node=record.node if leads else "",
            address=self._address if leads else "",
            epoch=record.epoch,
            token=record.token if leads else 0,
            since_ms=record.since_ms,
            reason=record.reason,
            deadline_s=None if not leads or hard_at == float("inf") else max(0.0, hard_at - now),
            candidates=(self._candidate(record),),
        )

    def nobody(self, resource: str) -> Leadership:
        """For a resource that was never led."""
        return Leadership(
            resource=resource, role=Role.FOLLOWER, node="", address="", epoch=0, token=0, since_ms=0, reason="",
            deadline_s=None, candidates=(Candidate(node=self._node, eligible=False, reason="has not campaigned yet"),),
        )  # fmt: skip

    def _event(self, record: TermRecord) -> LeadershipRoleChanged:
        leads = _leads(record)
        return LeadershipRoleChanged(
            resource=record.resource,
            role=self._role(record),
            node=record.node if leads else "",
            address=self._address if leads else "",
            epoch=record.epoch,
            token=record.token if leads else 0,
            reason=record.reason,
        )

    def _role(self, record: TermRecord) -> Role:
        return Role.LEADER if _leads(record) and record.node == self._node else Role.FOLLOWER

    def _candidate(self, record: TermRecord) -> Candidate:
        if record.state is TermState.OPEN:
            return Candidate(node=record.node, eligible=True, reason="leads it")
        if record.state is TermState.CLOSING:
            return Candidate(node=record.node, eligible=False, reason="its term is being closed")
        return Candidate(node=self._node, eligible=False, reason=f"does not campaign: {record.reason}")


def _leads(record: TermRecord) -> bool:
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
    since = datetime.fromtimestamp(leadership.since_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if closing and leadership.role != Role.LEADER:
        return f"Nobody leads {leadership.resource}: epoch {leadership.epoch}, begun at {since}, is being closed."
    if leadership.role != Role.LEADER:
        return f"Nobody leads {leadership.resource}: epoch {leadership.epoch} ended at {since} ({leadership.reason})."
    begun = f"{leadership.node} leads {leadership.resource} in epoch {leadership.epoch} since {since} ({leadership.reason})"
    if closing:
        return f"{begun}; the term is being closed."
    if leadership.deadline_s is None:
        return f"{begun}; the term does not run out, for this node is alone."
    return f"{begun}; {leadership.deadline_s:.1f} s to the deadline."

"""Commands of telemetry: what happened, and the numbers."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from piccolod.protocol.base import Request


class EventRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An event of the journal. `id` grows for ever, over restarts too."""

    id: int
    type: str
    key: str
    at: int  # milliseconds since 1970
    node: str
    body: dict[str, Any]


class EventRecords(msgspec.Struct, frozen=True, kw_only=True):
    events: tuple[EventRecord, ...]
    last_id: int


class GetEvents(Request[EventRecords], frozen=True, kw_only=True):
    """Events with id > `after`, oldest first; `after` < 0: the last `limit`. Waits up to `wait_s` for the first."""

    command: ClassVar[str] = "telemetry.history"
    reply: ClassVar[type] = EventRecords
    after: int = -1
    limit: int = 200
    type: str = ""
    key: str = ""
    wait_s: float = 0.0


class MetricsText(msgspec.Struct, frozen=True, kw_only=True):
    text: str


class GetMetrics(Request[MetricsText], frozen=True, kw_only=True):
    """Prometheus exposition format."""

    command: ClassVar[str] = "telemetry.metrics"
    reply: ClassVar[type] = MetricsText

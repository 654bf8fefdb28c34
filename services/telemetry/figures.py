"""What the metrics show of the events: a fold, and its text for Prometheus. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from piccolod.protocol.base import Event, Level
from piccolod.protocol.consensus import Leadership
from piccolod.protocol.events import AppStateChanged, HealthChanged, LockStateChanged, ModuleStateChanged
from piccolod.protocol.persistence import Revision
from piccolod.protocol.router import RouteState

_LEVELS = {Level.OK: 0, Level.WARN: 1, Level.ERROR: 2}


@dataclass(slots=True)
class Figures:
    """What was heard since this module started."""

    modules: dict[str, ModuleStateChanged] = field(default_factory=dict)
    health: dict[str, HealthChanged] = field(default_factory=dict)
    apps: dict[str, AppStateChanged] = field(default_factory=dict)
    lock: LockStateChanged | None = None
    events: Counter[str] = field(default_factory=Counter)
    resyncs: int = 0

    def hear(self, event: Event) -> None:
        self.events[event.type] += 1
        if isinstance(event, ModuleStateChanged):
            self.modules[event.module] = event
        elif isinstance(event, HealthChanged):
            self.health[event.component] = event
        elif isinstance(event, LockStateChanged):
            self.lock = event
        elif isinstance(event, AppStateChanged):
            if event.removed:
                self.apps.pop(event.app, None)
            else:
                self.apps[event.app] = event


@dataclass(frozen=True, slots=True)
class Asked:
    """What the other modules answered at this scrape; None: they did not."""

    revision: Revision | None = None
    leaderships: tuple[Leadership, ...] | None = None
    routes: tuple[RouteState, ...] = ()
    routers_silent: int = 0
    journal_last_id: int = 0
    journal_lost: int = 0


def text(figures: Figures, asked: Asked, rss_bytes: Callable[[int], int]) -> str:
    """Prometheus exposition format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once([*_modules(figures, rss_bytes), *_node(figures, asked), *_traffic(asked)]))
    return generate_latest(registry).decode()


class _Once(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _gauge(name: str, what: str, labels: list[str], rows: Iterable[tuple[list[str], float]]) -> Metric:
    return _filled(GaugeMetricFamily(name, what, labels=labels), rows)


def _counter(name: str, what: str, labels: list[str], rows: Iterable[tuple[list[str], float]]) -> Metric:
    return _filled(CounterMetricFamily(name, what, labels=labels), rows)


def _filled(family: Any, rows: Iterable[tuple[list[str], float]]) -> Metric:
    for labels, value in rows:
        family.add_metric(labels, value)
    filled: Metric = family
    return filled


def _modules(figures: Figures, rss_bytes: Callable[[int], int]) -> Iterator[Metric]:
    seen = sorted(figures.modules.items())
    ready = [([name], float(each.state == "ready")) for name, each in seen]
    yield _gauge("piccolo_module_up", "1 while the module is ready.", ["module"], ready)
    restarts = [([name], float(each.restarts)) for name, each in seen]
    yield _counter("piccolo_module_restarts", "Restarts since piccolod started.", ["module"], restarts)
    resident = [([name], float(rss_bytes(each.pid))) for name, each in seen if each.pid]
    yield _gauge("piccolo_module_resident_memory_bytes", "Resident memory.", ["module"], resident)
    levels = [([name], float(_LEVELS[each.level])) for name, each in sorted(figures.health.items())]
    yield _gauge("piccolo_component_health", "0 OK, 1 WARN, 2 ERROR.", ["component"], levels)


def _node(figures: Figures, asked: Asked) -> Iterator[Metric]:
    lock = figures.lock
    if lock is not None:
        yield _gauge("piccolo_locked", "1 while the control store is locked.", [], [([], float(lock.locked))])
    if asked.revision is not None:
        revision = asked.revision
        rows = [([kind], float(getattr(revision, kind))) for kind in ("rev", "announced", "verified")]
        yield _gauge("piccolo_store_revision", "Revision of the control store.", ["kind"], rows)
    if asked.leaderships is not None:
        leads = [([each.resource], float(each.role == "leader")) for each in asked.leaderships]
        yield _gauge("piccolo_leader", "1 while this node leads the resource.", ["resource"], leads)
        epochs = [([each.resource], float(each.epoch)) for each in asked.leaderships]
        yield _gauge("piccolo_leader_epoch", "Epoch of the resource's term.", ["resource"], epochs)
    states = Counter(each.state for each in figures.apps.values())
    yield _gauge("piccolo_apps", "Apps by state.", ["state"], [([state], float(n)) for state, n in sorted(states.items())])
    events = [([name], float(n)) for name, n in sorted(figures.events.items())]
    yield _counter("piccolo_events", "Events heard since telemetry started.", ["type"], events)
    yield _counter("piccolo_bus_resyncs", "Times that events may have been lost.", [], [([], float(figures.resyncs))])
    yield _gauge("piccolo_journal_last_id", "The id of the newest event.", [], [([], float(asked.journal_last_id))])
    yield _counter("piccolo_journal_lost", "Events that could not be kept.", [], [([], float(asked.journal_lost))])
    failed = float(asked.routers_silent + (asked.revision is None) + (asked.leaderships is None))
    yield _gauge("piccolo_scrape_silent_modules", "Modules that did not answer this scrape.", [], [([], failed)])


def _traffic(asked: Asked) -> Iterator[Metric]:
    def sums(name: str) -> list[tuple[list[str], float]]:
        total: dict[tuple[str, str], float] = {}
        for route in asked.routes:
            at = (route.app, route.listener)
            total[at] = total.get(at, 0.0) + getattr(route, name)
        return [(list(at), value) for at, value in sorted(total.items())]

    labels = ["app", "listener"]
    yield _gauge("piccolo_route_connections", "Open connections.", labels, sums("connections"))
    yield _counter("piccolo_route_accepted", "Connections relayed.", labels, sums("total_connections"))
    yield _counter("piccolo_route_refused", "Connections refused.", labels, sums("refused"))
    yield _counter("piccolo_route_received_bytes", "Bytes from clients.", labels, sums("bytes_in"))
    yield _counter("piccolo_route_sent_bytes", "Bytes to clients.", labels, sums("bytes_out"))

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from piccolod.protocol.base import Level
from piccolod.protocol.consensus import Leadership
from piccolod.protocol.events import AppStateChanged, Audit, HealthChanged, LockStateChanged, ModuleStateChanged
from piccolod.protocol.persistence import Revision
from piccolod.protocol.router import RouteState
from services.telemetry.figures import Asked, Figures, text


def values(shown: str) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(shown)
        for sample in family.samples
    }


def app(name: str, state: str, removed: bool = False) -> AppStateChanged:
    return AppStateChanged(app=name, state=state, reason="", removed=removed)


def test_what_was_heard_is_counted() -> None:
    figures = Figures()
    for event in (
        ModuleStateChanged(module="apps", state="ready", pid=7, instance="i", restarts=3, reason=""),
        ModuleStateChanged(module="api", state="crashlooping", pid=0, instance="", restarts=9, reason=""),
        HealthChanged(component="podman", level=Level.WARN),
        LockStateChanged(locked=True, initialized=True, rev=4),
        app("a", "running"),
        app("b", "running"),
        app("b", "failed"),
        app("c", "running"),
        app("c", "running", removed=True),
        Audit(actor="root", source="uid:0", action="POST /x", status=200, code="", request_id="r"),
    ):
        figures.hear(event)
    figures.resyncs = 2
    shown = values(text(figures, Asked(journal_last_id=11, journal_lost=1), lambda pid: pid * 1000))
    assert shown["piccolo_module_up", ("apps",)] == 1
    assert shown["piccolo_module_up", ("api",)] == 0
    assert shown["piccolo_module_restarts_total", ("apps",)] == 3
    assert shown["piccolo_module_resident_memory_bytes", ("apps",)] == 7000
    assert ("piccolo_module_resident_memory_bytes", ("api",)) not in shown
    assert shown["piccolo_component_health", ("podman",)] == 1
    assert shown["piccolo_locked", ()] == 1
    assert shown["piccolo_apps", ("running",)] == 1
    assert shown["piccolo_apps", ("failed",)] == 1
    assert shown["piccolo_events_total", ("Audit",)] == 1
    assert shown["piccolo_bus_resyncs_total", ()] == 2
    assert shown["piccolo_journal_last_id", ()] == 11
    assert shown["piccolo_journal_lost_total", ()] == 1
    assert shown["piccolo_scrape_silent_modules", ()] == 2


def test_what_was_asked_is_shown_with_the_workers_added() -> None:
    route = RouteState(
        app="a", listener="web", mode="local", public_port=1, target="", epoch=1, reason="",
        connections=2, total_connections=5, refused=1, bytes_in=10, bytes_out=20,
    )  # fmt: skip
    kernel = Leadership(
        resource="kernel", role="leader", node="n1", address="", epoch=4, token=1, since_ms=0, reason="", deadline_s=None
    )
    asked = Asked(
        revision=Revision(rev=7, announced=8, verified=7, digest="", locked=False), leaderships=(kernel,), routes=(route, route)
    )
    shown = values(text(Figures(), asked, lambda pid: 0))
    assert shown["piccolo_store_revision", ("rev",)] == 7
    assert shown["piccolo_store_revision", ("announced",)] == 8
    assert shown["piccolo_leader", ("kernel",)] == 1
    assert shown["piccolo_leader_epoch", ("kernel",)] == 4
    assert shown["piccolo_route_connections", ("a", "web")] == 4
    assert shown["piccolo_route_sent_bytes_total", ("a", "web")] == 40
    assert shown["piccolo_scrape_silent_modules", ()] == 0


def test_names_with_quotes_and_lines_do_not_break_the_text() -> None:
    figures = Figures()
    figures.hear(HealthChanged(component='a"b\\c\nd', level=Level.OK))
    assert values(text(figures, Asked(), lambda pid: 0))["piccolo_component_health", ('a"b\\c\nd',)] == 0

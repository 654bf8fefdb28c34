"""History and the live stream of events, and the logs of an app."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec
import pytest

from piccolod import clock
from piccolod.errors import PeerRestarted
from piccolod.protocol.apps import GetAppLogs, LogLine, LogLines
from piccolod.protocol.telemetry import EventRecord, GetEvents
from services.api import access
from tests.unit.api.node import BASE, Node


def happen(node: Node, kind: str = "Audit") -> None:
    number = len(node.modules.events) + 1
    node.modules.events.append(EventRecord(id=number, type=kind, key="", at=number, node="n1", body={"n": number}))


@contextmanager
def stream(node: Node, query: str = "", **headers: str) -> Iterator[Iterator[dict[str, Any]]]:
    with node.unix() as client, client.http.stream("GET", f"{BASE}/events{query}", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield records(answer)


def records(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    number = ""
    for line in answer.iter_lines():
        if line.startswith("id: "):
            number = line[4:]
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            assert str(event["id"]) == number
            yield event


def test_a_new_stream_begins_now(node: Node) -> None:
    happen(node)
    with stream(node) as events:
        happen(node)
        assert next(events)["id"] == 2


def test_a_stream_goes_on_where_the_former_one_ended(node: Node) -> None:
    for _ in range(5):
        happen(node)
    with stream(node, **{"Last-Event-ID": "2"}) as events:
        assert [next(events)["id"] for _ in range(3)] == [3, 4, 5]
        happen(node)
        assert next(events)["id"] == 6


def test_a_stream_can_be_of_one_type(node: Node) -> None:
    with stream(node, "?type=AppStateChanged") as events:
        happen(node)
        happen(node, "AppStateChanged")
        assert next(events)["type"] == "AppStateChanged"


def test_a_stream_outlives_a_restart_of_the_journal(node: Node) -> None:
    with stream(node) as events:
        happen(node)
        assert next(events)["id"] == 1
        node.modules.fail_kinds[GetEvents] = PeerRestarted("telemetry restarted")
        happen(node)
        node.loop.call_soon_threadsafe(node.loop.call_later, 0.2, node.modules.fail_kinds.clear)
        assert next(events)["id"] == 2


@pytest.mark.parametrize("last", ["x", "-1", "1.5", ""])
def test_a_garbage_last_event_id_is_400(node: Node, last: str) -> None:
    with node.unix() as client:
        assert client.get("/events", headers={"Last-Event-ID": last}).status_code == 400


def test_streams_are_bounded(node: Node) -> None:
    node.service._core.streams.taken = 64
    with node.unix() as client:
        answer = client.get("/events")
    node.service._core.streams.taken = 0
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many")


def test_followed_logs_are_bounded_before_the_answer_begins(node: Node) -> None:
    node.service._core.streams.taken = 64
    with node.unix() as client:
        answer = client.get("/apps/x/logs?follow=true")
    node.service._core.streams.taken = 0
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many")


def test_a_revoked_token_loses_its_stream_though_events_flow(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "LOOK_AGAIN_S", 0.2)
    with node.unix() as root, node.token("read") as client:
        (token,) = root.get("/auth/tokens").json()
        with client.http.stream("GET", f"{BASE}/events") as answer:
            events = records(answer)
            happen(node)
            next(events)
            root.delete(f"/auth/tokens/{token['id']}")
            give_up_at = clock.now() + 10
            happen(node)
            for _ in events:  # each one is followed by another: there is never a pause
                happen(node)
                assert clock.now() < give_up_at, "the stream goes on without a right"


def test_a_stream_that_is_left_frees_its_place(node: Node) -> None:
    with stream(node) as events:
        happen(node)
        next(events)
        assert node.service._core.streams.taken == 1
    from tests.unit.api.test_connection import until

    until(lambda: node.service._core.streams.taken == 0)


def test_history_is_an_array(node: Node) -> None:
    for _ in range(3):
        happen(node)
    with node.unix() as client:
        assert [each["id"] for each in client.get("/events/history?limit=2").json()] == [2, 3]
        assert [each["id"] for each in client.get("/events/history?after=1").json()] == [2, 3]
        assert client.get("/events/history?limit=0").status_code == 400


def test_followed_logs_come_as_lines_until_the_app_is_gone(node: Node) -> None:
    pages = iter([("one", "c1"), ("two", "c2")])

    def page(request: GetAppLogs) -> LogLines:
        for text, cursor in pages:
            return LogLines(lines=(LogLine(at_ms=1, stream="stdout", line=text),), cursor=cursor)
        from piccolod.errors import NotFound

        raise NotFound("gone")

    node.modules.replies[GetAppLogs] = page
    with node.unix() as client, client.http.stream("GET", f"{BASE}/apps/x/logs?follow=true&tail=5") as answer:
        lines = [msgspec.json.decode(line, type=LogLine).line for line in answer.iter_lines()]
    assert lines == ["one", "two"]
    assert [each.cursor for each in node.modules.asked(GetAppLogs)] == ["", "c1", "c2"]
    assert node.modules.asked(GetAppLogs)[0].tail == 5

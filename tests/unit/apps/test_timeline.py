"""What is told of a start: once in a term, and only what was seen from its beginning."""

from __future__ import annotations

from services.apps.situation import Do
from services.apps.timeline import Timeline


def started(*steps: Do, token: int = 7) -> Timeline:
    line = Timeline()
    line.of(token)
    for step in steps:
        line.did(step)
    return line


def test_a_start_is_told_once_in_its_order() -> None:
    line = started(Do.CAMPAIGN, Do.ATTACH, Do.CREATE, Do.INIT, Do.ARM, Do.START, token=0)
    line.of(7)  # at the next look: all of that was one pass
    at = line.served(ready_at=1e12)
    assert at is not None and list(at) == ["attached", "started", "ready", "routed"]
    assert at["attached"] <= at["started"] <= at["routed"] and at["ready"] == 1e12
    line.of(7)
    line.did(Do.START)
    assert line.served(ready_at=1e12) is None, "a restart in the same term is no change of leadership"


def test_another_term_is_told_anew() -> None:
    line = started(Do.ATTACH, Do.START)
    assert line.served(1.0) is not None
    line.of(8)
    line.did(Do.START)
    at = line.served(2.0)
    assert at is not None and "attached" not in at


def test_what_was_found_running_is_not_told() -> None:
    found = started()
    assert found.served(1.0) is None
    found.did(Do.START)
    assert found.served(1.0) is None, "a restart days later is no start of the term"
    line = started(Do.START)
    line.of(0)
    assert line.served(1.0) is None, "without a term nothing is led"
    line.of(9)
    assert line.served(1.0) is None, "it was started in another one"

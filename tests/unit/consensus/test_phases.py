from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from piccolod.leadership.records import ChangeRecord
from piccolod.leadership.roles import Reason
from services.consensus.phases import OF_APPS, complete, durations_ms


def change(**phases: float) -> ChangeRecord:
    return ChangeRecord(
        resource="app:blog", epoch=2, at_ms=1, from_node="n1", to_node="n2", reason=Reason.SWITCHOVER, phases=phases
    )


def test_what_the_former_holder_needed_is_not_counted_twice() -> None:
    assert complete(change(closing=200.0), 0.25) == {"closing": 200.0, "claimed": 50.0}
    assert complete(change(closing=300.0), 0.25) == {"closing": 300.0, "claimed": 0.0}
    assert complete(change(detected=3000.0, claimed=1.0), 0.02) == {"detected": 3000.0, "claimed": 20.0}


def test_phases_follow_each_other() -> None:
    at = {"routed": 10.7, "ready": 10.6, "started": 10.5}
    assert durations_ms(10.0, at) == {"started": 500.0, "ready": 100.0, "routed": 100.0}
    assert list(durations_ms(10.0, at)) == ["started", "ready", "routed"]


@given(st.dictionaries(st.sampled_from(OF_APPS), st.floats(0, 100)), st.floats(0, 100))
def test_they_add_up_to_the_last_moment_whatever_they_are(at: dict[str, float], since: float) -> None:
    found = durations_ms(since, at)
    assert all(took >= 0 for took in found.values())
    assert abs(sum(found.values()) - (max([since, *at.values()]) - since) * 1000) < 0.01

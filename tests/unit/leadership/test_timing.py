from __future__ import annotations

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from piccolod.errors import Failed, Invalid
from piccolod.leadership.timing import (
    BALANCED,
    FAST,
    PATIENT,
    PROFILES,
    Measured,
    Timing,
    broken,
    checked,
    choose,
    founded,
    unfit,
    wait_s,
)

GOOD = Measured(stop_s=0.05, fsync_s=0.005, rtt_s=0.001)


def changed(timing: Timing, **changes: float) -> Timing:
    return msgspec.structs.replace(timing, **changes)


@pytest.mark.parametrize("timing", PROFILES.values(), ids=PROFILES)
def test_every_profile_keeps_its_own_inequalities(timing: Timing) -> None:
    assert checked(timing) is timing


@pytest.mark.parametrize(
    ("timing", "blip_s", "crash_s", "ttl_s"), [(FAST, 1.3, 2.8, 5), (BALANCED, 2.5, 5.55, 8), (PATIENT, 7.0, 18.05, 22)]
)
def test_derived_figures_are_those_of_the_table(timing: Timing, blip_s: float, crash_s: float, ttl_s: int) -> None:
    assert timing.blip_s == pytest.approx(blip_s)
    assert timing.crash_to_claim_s == pytest.approx(crash_s)
    assert timing.lease_ttl_s == ttl_s


def test_both_deadlines_count_from_the_send() -> None:
    assert FAST.hard_at(100.0) == pytest.approx(102.4)
    assert FAST.soft_at(100.0) == pytest.approx(102.1)


@given(st.sampled_from(list(PROFILES.values())), st.floats(0, 30), st.floats(0.9995, 1.0005), st.floats(0.9995, 1.0005))
def test_the_slowest_stop_that_is_accepted_ends_before_the_fastest_taker(
    timing: Timing, stop_s: float, holder_rate: float, taker_rate: float
) -> None:
    timing = changed(timing, stop_s=stop_s)
    assume(not broken(timing))
    stopped_after_s = (timing.hard_at(0.0) + timing.guard_tick_s + timing.lateness_s) / holder_rate + timing.stop_s
    taken_after_s = wait_s(timing.span_s, timing.rate_difference) / taker_rate
    assert stopped_after_s <= taken_after_s + 1e-3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"stop_s": 0.5}, "M >= F + g + s + rho*L: 0.6 < 0.5 + 0.05 + 0.1 + 0.001*3 = 0.653"),
        ({"rpc_s": 0.5}, "L >= M + G + h + 2E + 2*tau: 3 < 0.6 + 0.3 + 0.5 + 2*0.4 + 2*0.5 = 3.2"),
        ({"beat_s": 0.9, "rpc_s": 0.1}, "(L - M)/3 >= h: 0.8 < 0.9"),
    ],
)
def test_a_refusal_names_the_inequality_with_its_numbers(change: dict[str, float], text: str) -> None:
    with pytest.raises(Invalid) as refused:
        checked(changed(FAST, **change))
    assert text in refused.value.detail


def test_all_broken_inequalities_are_named_at_once() -> None:
    assert len(broken(changed(FAST, stop_s=9.0, beat_s=2.0))) == 3


def test_auto_takes_the_fastest_profile_on_a_good_machine_and_carries_what_it_measured() -> None:
    choice = choose(GOOD)
    assert choice.timing == changed(FAST, stop_s=0.05)
    assert choice.why == "fast: F 50 ms, fsync p99 5 ms, rtt 1 ms, holds doubled"


@pytest.mark.parametrize(
    ("measured", "profile", "reason"),
    [
        (Measured(stop_s=0.3, fsync_s=0.005, rtt_s=0.001), "balanced", "not fast: M >= F + g + s + rho*L: 0.6 < 0.6 +"),
        (Measured(stop_s=0.05, fsync_s=0.11, rtt_s=0.001), "balanced", "not fast: E >= 2*fsync: 0.4 < 2*0.22"),
        (Measured(stop_s=0.05, fsync_s=0.005, rtt_s=0.1), "patient", "not balanced: E >= 10*rtt: 0.5 < 10*0.2 = 2"),
        (Measured(stop_s=0.05, fsync_s=0.4, rtt_s=0.001), "patient", "not balanced: tau >= 2*rtt + fsync: 0.5 <"),
        (
            Measured(stop_s=0.05, fsync_s=0.005, rtt_s=0.0, election_s=1.0),
            "balanced",
            "not fast: L >= M + G + h + 2E + 2*tau: 3 <",
        ),
        (Measured(stop_s=0.05, fsync_s=0.3, rtt_s=0.0, election_s=1.0), "patient", "not balanced: tau >="),
    ],
)
def test_auto_takes_a_slower_profile_and_says_why(measured: Measured, profile: str, reason: str) -> None:
    choice = choose(measured)
    assert choice.timing.profile == profile
    assert reason in choice.why


def test_auto_refuses_a_machine_that_can_keep_no_profile() -> None:
    with pytest.raises(Invalid, match=r"no timing profile holds here: .*; not patient: tau >= 2\*rtt \+ fsync: 2 < "):
        choose(Measured(stop_s=0.05, fsync_s=2.0, rtt_s=0.001))


@given(st.floats(0, 3), st.floats(0, 3), st.floats(0, 1))
def test_what_auto_takes_holds_with_all_three_doubled_and_nothing_faster_does(
    stop_s: float, fsync_s: float, rtt_s: float
) -> None:
    doubled = Measured(stop_s=2 * stop_s, fsync_s=2 * fsync_s, rtt_s=2 * rtt_s)
    fitting = [timing.profile for timing in PROFILES.values() if not unfit(timing, doubled)]
    assume(fitting)
    assert choose(Measured(stop_s=stop_s, fsync_s=fsync_s, rtt_s=rtt_s)).timing.profile == fitting[0]


def test_a_profile_of_a_newer_version_is_refused() -> None:
    assert founded("fast", 0.01).stop_s == 0.01
    with pytest.raises(Failed, match="lightning"):
        founded("lightning", 0.01)

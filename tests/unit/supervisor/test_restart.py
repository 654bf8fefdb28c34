from __future__ import annotations

from piccolod.kernel import MODULES, ModuleSpec
from piccolod.supervisor.restart import History, Policy, after_death, followers, missing, stop_layers, while_ready

POLICY = Policy()


def die(times: list[float], ready_s: float = 1.0, luck: float = 0.5) -> tuple[History, list[float]]:
    history, delays = History(), []
    for at in times:
        verdict = after_death(history, POLICY, at, ready_s, luck)
        history = verdict.history
        delays.append(verdict.delay_s)
    return history, delays


def test_the_first_restart_is_at_once_and_each_further_one_waits_twice_as_long():
    _, delays = die([0.0, 40.0, 80.0, 120.0, 160.0])
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.8]


def test_no_restart_waits_longer_than_the_ceiling_however_many_deaths_there_were():
    _, delays = die([100.0 * n for n in range(2000)])
    assert delays[-1] == POLICY.ceiling_s


def test_jitter_stays_within_a_fifth():
    delays = {die([0.0, 40.0], luck=luck)[1][1] for luck in (0.0, 0.5, 0.999999)}
    assert min(delays) >= 0.08 and max(delays) <= 0.12 and len(delays) == 3


def test_five_deaths_within_the_window_are_no_crash_loop_and_six_are():
    assert not die([0, 1, 2, 3, 4])[0].looping
    history, delays = die([0, 1, 2, 3, 4, 5])
    assert history.looping
    assert delays[-1] == POLICY.loop_s


def test_six_deaths_over_a_longer_time_are_no_crash_loop():
    assert not die([0, 7, 14, 21, 28, 35])[0].looping


def test_a_crash_loop_is_retried_for_ever_at_the_same_pace():
    history, _ = die([0, 1, 2, 3, 4, 5])
    for at in range(35, 10_000, 30):
        verdict = after_death(history, POLICY, at, 0.0, 0.5)
        history = verdict.history
        assert verdict.delay_s == POLICY.loop_s


def test_a_module_that_was_healthy_for_a_minute_starts_with_a_clean_record():
    history, _ = die([0, 1, 2, 3, 4, 5])
    verdict = after_death(history, POLICY, 100.0, 60.0, 0.5)
    assert verdict.delay_s == 0.0
    assert not verdict.history.looping


def test_a_crash_loop_ends_when_the_module_is_healthy_without_another_death():
    history, _ = die([0, 1, 2, 3, 4, 5])
    assert while_ready(history, POLICY, 59.0).looping
    assert while_ready(history, POLICY, 60.0) == History()


def test_the_memory_of_deaths_is_bounded():
    history, _ = die([n / 1000 for n in range(1000)], ready_s=0.0)
    assert len(die([float(40 * n) for n in range(1000)])[0].deaths) == 1
    assert len(history.deaths) == 1000  # within one window; the backoff keeps real ones to a dozen


def test_what_is_missing_is_what_is_needed_and_not_ready():
    spec = ModuleSpec("x", "t", needs=("a", "b"))
    assert missing(spec, {"b"}) == ["a"]
    assert missing(spec, {"a", "b"}) == []


def test_restart_with_reaches_through_others_and_needs_does_not():
    table = [
        ModuleSpec("a", "t"),
        ModuleSpec("b", "t", needs=("a",)),
        ModuleSpec("c", "t", restart_with=("a",)),
        ModuleSpec("d", "t", restart_with=("c",)),
    ]
    assert followers(table, "a") == ["c", "d"]
    assert followers(table, "b") == []


def test_modules_that_are_restarted_with_each_other_are_each_followed_by_the_other():
    table = [ModuleSpec("a", "t", restart_with=("b",)), ModuleSpec("b", "t", restart_with=("a",))]
    assert followers(table, "a") == ["b"]
    assert followers(table, "b") == ["a"]


def test_nobody_stops_before_those_who_need_it():
    names = [row.name for row in MODULES]
    layers = stop_layers(MODULES, names)
    place = {name: index for index, layer in enumerate(layers) for name in layer}
    assert sorted(place) == sorted(names)
    for row in MODULES:
        for needed in row.needs:
            assert place[needed] > place[row.name], f"{needed} stops before {row.name}, which needs it"
    assert layers[-1] == ["broker"]


def test_modules_that_need_each_other_by_mistake_still_stop():
    table = [ModuleSpec("a", "t", needs=("b",)), ModuleSpec("b", "t", needs=("a",))]
    assert sorted(name for layer in stop_layers(table, ["a", "b"]) for name in layer) == ["a", "b"]


def test_only_who_lives_is_stopped():
    assert stop_layers(MODULES, ["api", "broker"]) == [["api"], ["broker"]]

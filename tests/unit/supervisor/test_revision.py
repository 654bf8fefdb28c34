from __future__ import annotations

from piccolod.kernel import ModuleSpec
from piccolod.supervisor import revision
from piccolod.supervisor.revision import Action, Pace, Rollout, Verb

PACE = Pace()
TABLE = [
    ModuleSpec("store", "t"),
    ModuleSpec("low", "t", restart_on_kernel_rev_change=True, reads=("settings", "users")),
    ModuleSpec("high", "t", restart_on_kernel_rev_change=True, reads=("settings",)),
]
ALIVE = ["store", "low", "high"]


def begun() -> Rollout:
    state = revision.begin(TABLE)
    for name in ALIVE:
        state = revision.ready(state, name, 0, False)
    return state


def told(state: Rollout, rev: int, now: float, collections: tuple[str, ...] = ("settings",), leader: bool = False) -> Rollout:
    return revision.verified(state, rev, collections, leader, now)


def run(
    state: Rollout, start: float, end: float, alive: list[str] | None = None, live: bool = True, busy: tuple[str, ...] = ()
) -> tuple[Rollout, list[tuple[float, Action]]]:
    """Steps each 10 ms; whoever is restarted is ready 50 ms later, if `live`."""
    actions: list[tuple[float, Action]] = []
    now, back = start, {}
    while now < end:
        for name, at in list(back.items()):
            if at <= now:
                del back[name]
                state = revision.ready(state, name, 0, False)
        state, new = revision.step(state, alive if alive is not None else ALIVE, busy, now, PACE)
        for action in new:
            actions.append((round(now - start, 2), action))
            if live and action.verb is Verb.RESTART:
                back[action.module] = now + 0.05
        now += 0.01
    return state, actions


def test_a_follower_restarts_its_flagged_modules_one_after_the_other_those_who_depend_on_others_first():
    _, actions = run(told(begun(), 5, 100.0), 100.0, 103.0)
    assert [action for _, action in actions] == [Action(Verb.RESTART, "high", 5), Action(Verb.RESTART, "low", 5)]
    assert 0.25 <= actions[0][0] <= 0.27
    assert actions[1][0] >= actions[0][0] + 0.05


def test_on_the_leader_its_own_commits_restart_nothing():
    state = begun()
    for rev in range(1, 50):
        state = told(state, rev, 100.0 + rev, leader=True)
    _, actions = run(state, 200.0, 210.0)
    assert actions == []
    assert {follower.applied for follower in state.followers.values()} == {49}


def test_a_rev_that_touches_nothing_a_module_reads_counts_as_applied():
    state = told(begun(), 5, 100.0, ("users",))
    assert state.followers["high"].applied == 5
    _, actions = run(state, 100.0, 103.0)
    assert [action.module for _, action in actions] == ["low"]


def test_a_rev_with_unknown_collections_concerns_everybody():
    _, actions = run(told(begun(), 5, 100.0, ()), 100.0, 103.0)
    assert {action.module for _, action in actions} == {"low", "high"}


def test_a_burst_of_revs_is_one_restart():
    state, now = begun(), 100.0
    actions = []
    for rev in range(1, 21):
        state = told(state, rev, now)
        state, new = revision.step(state, ALIVE, (), now, PACE)
        actions += new
        now += 0.02
    _, more = run(state, now, now + 2)
    assert actions == []
    assert [action for _, action in more] == [Action(Verb.RESTART, "high", 20), Action(Verb.RESTART, "low", 20)]


def test_a_stream_of_revs_that_never_pauses_is_served_after_a_second():
    state, now, first = begun(), 100.0, None
    for rev in range(1, 200):
        state = told(state, rev, now)
        state, new = revision.step(state, ALIVE, (), now, PACE)
        if new and first is None:
            first = now
        now += 0.05
    assert first is not None
    assert 1.0 <= first - 100.0 <= 1.1


def test_two_restarts_of_one_module_are_at_least_five_seconds_apart():
    state, actions = run(told(begun(), 5, 100.0, ("users",)), 100.0, 101.0)
    state, more = run(told(state, 6, 101.0, ("users",)), 101.0, 110.0)
    assert len(actions) == len(more) == 1
    assert 101.0 + more[0][0] - (100.0 + actions[0][0]) >= 5.0 - 0.02


def test_a_module_that_does_not_get_ready_is_tried_three_times_and_ends_the_roll_out():
    state, actions = run(told(begun(), 5, 100.0), 100.0, 300.0, live=False)
    assert [action.module for _, action in actions] == ["high"] * 3
    assert revision.stale(state) == {"high": 5}


def test_a_new_rev_gives_a_stale_module_another_chance():
    state, _ = run(told(begun(), 5, 100.0), 100.0, 300.0, live=False)
    state, actions = run(told(state, 6, 300.0), 300.0, 310.0)
    assert [action.module for _, action in actions] == ["high", "low"]
    assert revision.stale(state) == {}


def test_a_module_that_reloads_is_reloaded_and_not_restarted():
    state = revision.ready(begun(), "high", 0, True)
    state, actions = run(told(state, 5, 100.0), 100.0, 100.4)
    assert [action for _, action in actions] == [Action(Verb.RELOAD, "high", 5)]
    state = revision.applied(state, "high", 5)
    _, actions = run(state, 100.4, 110.0)
    assert [action for _, action in actions] == [Action(Verb.RESTART, "low", 5)]


def test_a_reload_that_is_not_answered_within_five_seconds_becomes_a_restart():
    state = revision.ready(begun(), "high", 0, True)
    _, actions = run(told(state, 5, 100.0), 100.0, 106.0)
    assert [action.verb for _, action in actions if action.module == "high"] == [Verb.RELOAD, Verb.RESTART]
    assert actions[1][0] - actions[0][0] >= 5.0 - 0.02


def test_an_older_or_equal_rev_changes_nothing():
    state = told(begun(), 5, 100.0, leader=True)
    assert told(state, 5, 200.0) is state
    assert told(state, 4, 200.0) is state


def test_a_module_that_is_not_alive_is_left_to_its_own_restart():
    state = told(begun(), 5, 100.0)
    state, actions = run(state, 100.0, 103.0, alive=["store"])
    assert actions == []
    state = revision.ready(revision.ready(state, "high", 0, False), "low", 0, False)
    assert run(state, 103.0, 110.0)[1] == []


def test_a_fresh_life_that_says_it_acts_on_an_older_rev_is_behind():
    state = told(begun(), 5, 100.0, leader=True)
    state = revision.ready(told(state, 6, 101.0), "high", 4, False)
    _, actions = run(state, 102.0, 104.0, alive=["high"])
    assert [action.module for _, action in actions] == ["high"]


def test_modules_without_the_flag_are_nobodys_concern():
    assert "store" not in begun().followers


def test_the_next_look_is_known_whenever_something_is_pending():
    state = told(begun(), 5, 100.0)
    at = revision.next_at(state, 100.0, PACE)
    assert at is not None and 100.25 <= at <= 100.3
    assert revision.next_at(begun(), 100.0, PACE) is None


def test_a_module_that_is_busy_is_restarted_when_it_is_not_any_more_and_holds_nobody_else_up():
    state, actions = run(told(begun(), 5, 100.0), 100.0, 120.0, busy=("high",))
    assert [action for _, action in actions] == [Action(Verb.RESTART, "low", 5)]
    _, actions = run(state, 120.0, 121.0)
    assert [action for _, action in actions] == [Action(Verb.RESTART, "high", 5)]


def test_a_module_that_is_busy_for_ever_is_restarted_in_the_end():
    start = 100.0 + PACE.longest_busy_s
    _, actions = run(told(begun(), 5, 100.0), start - 0.1, start + 0.1, busy=("high",))
    assert Action(Verb.RESTART, "high", 5) in [action for at, action in actions if at >= 0.09]


def test_a_module_that_is_busy_reloads():
    state = revision.ready(begun(), "high", 0, True)
    _, actions = run(told(state, 5, 100.0), 100.0, 101.0, busy=("high",))
    assert actions[0][1] == Action(Verb.RELOAD, "high", 5)

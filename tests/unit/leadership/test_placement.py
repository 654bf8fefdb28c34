from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from piccolod.leadership.placement import BATCH_S, NEXT_S, Standing, bound, delay_s, liking, ranked

ABLE = Standing()


def everywhere(apps: list[str], *nodes: str, **changed: Standing) -> dict[str, dict[str, Standing]]:
    return {node: dict.fromkeys(apps, changed.get(node, ABLE)) for node in nodes}


def test_apps_that_are_lost_together_are_spread_evenly() -> None:
    apps = [f"app{number}" for number in range(50)]
    rows = ranked(apps, everywhere(apps, "n1", "n2", "n3"), {})
    assert sorted(Counter(row[0] for row in rows.values()).values()) == [16, 17, 17]
    assert all(sorted(row) == ["n1", "n2", "n3"] for row in rows.values()), "who comes next is known, too"


def test_who_leads_more_gets_less() -> None:
    apps = [f"app{number}" for number in range(10)]
    rows = ranked(apps, everywhere(apps, "n1", "n2"), {"n1": 8, "n2": 2})
    assert Counter(row[0] for row in rows.values()) == {"n1": 2, "n2": 8}


def test_who_cannot_lead_it_is_left_out() -> None:
    standings = {"n1": {"blog": Standing(reason="the node is locked")}, "n2": {}, "n3": {"blog": ABLE}}
    assert ranked(["blog"], standings, {}) == {"blog": ("n3",)}
    assert ranked(["blog"], {"n1": {}}, {}) == {"blog": ()}


def test_failures_count_before_home_before_load_before_the_first_choice() -> None:
    standings = {
        "n1": {"blog": Standing(failures=1)}, "n3": {"blog": ABLE}, "n4": {"blog": ABLE}, "n5": {"blog": ABLE},
        "n6": {"blog": ABLE},
    }  # fmt: skip
    load = {"n3": 9, "n4": 2, "n5": 1, "n6": 1}
    assert ranked(["blog"], standings, load, home="n3", first="n6") == {"blog": ("n3", "n6", "n5", "n4", "n1")}


def test_what_the_manifest_prefers_counts_before_home_and_load_but_after_failures() -> None:
    liked = Standing(prefer=("n4", "n3"))
    failed = Standing(prefer=("n4", "n3"), failures=1)
    standings = {"n1": {"blog": liked}, "n2": {"blog": liked}, "n3": {"blog": liked}, "n4": {"blog": failed}}
    assert ranked(["blog"], standings, {"n3": 9}, home="n2") == {"blog": ("n3", "n2", "n1", "n4")}


def test_nodes_that_a_manifest_does_not_name_are_as_good_as_each_other() -> None:
    assert [liking(Standing(prefer=("n4", "n3")), node) for node in ("n4", "n3", "n2", "n1")] == [0, 1, 2, 2]
    assert liking(ABLE, "n1") == 0


@given(
    st.lists(st.sampled_from("abcdefgh"), unique=True),
    st.permutations(["n1", "n2", "n3", "n4"]),
    st.dictionaries(st.sampled_from(["n1", "n2", "n3", "n4"]), st.integers(0, 5)),
)
def test_every_node_comes_to_the_same_whatever_order_it_heard_of_them_in(
    apps: list[str], nodes: list[str], load: dict[str, int]
) -> None:
    found = ranked(reversed(apps), {node: dict.fromkeys(apps, ABLE) for node in nodes}, load)
    assert found == ranked(apps, everywhere(apps, "n1", "n2", "n3", "n4"), load)
    assert len({delay_s(found[app], node, len(apps)) for app in apps for node in found[app]}) == (4 if apps else 0)


def test_the_first_claims_at_once_and_each_next_one_later_and_who_is_not_named_last() -> None:
    row = ("n2", "n3")
    assert delay_s(row, "n2", 1) == 0
    assert delay_s(row, "n3", 1) == delay_s(row, "n3", 39) == NEXT_S, "one more app changes nobody's delay"
    assert delay_s(row, "n9", 1) == 2 * delay_s(row, "n3", 1)
    assert delay_s(row, "n3", 1000) == NEXT_S + 25 * BATCH_S, "who comes first has time to claim them all"


def test_data_binds_an_app_once_anybody_says_so() -> None:
    standings = {"n1": {"blog": ABLE}, "n2": {"blog": Standing(at_home=True, reason="locked")}}
    assert bound("blog", standings)
    assert not bound("wiki", standings)

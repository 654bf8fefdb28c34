"""Of an app in a cluster: what ends where another node leads it, and what each node says of itself."""

from __future__ import annotations

import msgspec
import pytest

from piccolod.leadership.placement import Standing
from services.apps import desired as change
from services.apps.backoff import Failures
from services.apps.plan import plan
from services.apps.podman_status import Status
from services.apps.situation import Do, Image, ImageIs, Leader, Plan, Route, Situation, State
from services.apps.standby import standing

from .situations import READY, TERM, UP, at, container, wanted

OTHER = Leader("n2", "10.77.1.2:7443", 4)


TOO_MANY = Failures(tuple(90.0 + n for n in range(6)), 6, 6, "exit 1")


def among(**seen: object) -> Situation:
    return at(clustered=True, **seen)


def test_where_another_node_leads_it_nothing_runs_and_clients_are_led_there() -> None:
    made = plan(wanted(), among(leader=OTHER))
    assert made == Plan(state=State.STANDBY, reason="n2 leads it", route=Route.TUNNEL)


def test_its_followers_of_leader_only_lead_nobody_there() -> None:
    assert plan(wanted("cluster: {policy: leader_only}\n"), among(leader=OTHER)).route is Route.CLOSED


def test_what_is_left_of_a_lost_term_ends_before_anything_else() -> None:
    made = plan(wanted(), among(leader=OTHER, container=container(), guarded=True, attached=frozenset({"d"})))
    assert made.steps == (Do.STOP, Do.DISARM, Do.REMOVE, Do.DETACH)
    assert made.state is State.STOPPING


def test_a_term_on_the_page_counts_more_than_what_was_announced() -> None:
    assert plan(wanted(), among(leader=OTHER, term=TERM, container=container(), health=READY)).route is Route.LOCAL


def test_who_stands_by_fetches_the_image_so_that_it_can_take_over() -> None:
    made = plan(wanted(), among(leader=OTHER, image=Image(ImageIs.ABSENT)))
    assert (made.state, made.steps) == (State.STANDBY, (Do.FETCH,))
    refused = plan(wanted(), among(leader=OTHER, image=Image(ImageIs.REFUSED, reason="no such image")))
    assert (refused.steps, refused.reason) == ((), "n2 leads it; this node could not yet: no such image")
    assert plan(wanted(), among(leader=OTHER, locked=True, image=Image(ImageIs.ABSENT))).steps == ()


def test_nobody_leads_it_so_this_node_tries() -> None:
    assert plan(wanted(), among()).steps == (Do.CAMPAIGN, *UP)


@pytest.mark.parametrize(
    "why", [{"locked": True}, {"image": Image(ImageIs.REFUSED, reason="gone")}, {"image": Image(ImageIs.FETCHING)}]
)
def test_a_term_in_which_nothing_can_begin_is_given_to_others(why: dict[str, object]) -> None:
    assert plan(wanted(), among(term=TERM, **why)).steps == (Do.CLOSING, Do.WITHDRAW)
    assert plan(wanted(), at(term=TERM, **why)).steps == (), "a node alone keeps it"


def test_only_the_leader_of_the_kernel_names_an_image() -> None:
    unnamed = change.install(wanted().current.manifest, "", {"web": 35000}, "boot", "")
    assert plan(unnamed, among()).steps == (Do.PIN,)
    assert plan(unnamed, among(writes=False)).steps == ()


def test_the_leader_of_the_kernel_names_the_image_of_what_another_node_runs() -> None:
    unnamed = change.install(wanted().current.manifest, "", {"web": 35000}, "boot", "")
    assert plan(unnamed, among(leader=OTHER)).steps == (Do.PIN,)
    assert plan(unnamed, among(leader=OTHER, writes=False)).steps == ()
    trial = change.update(wanted(), "b:2", "", "")
    named = plan(trial, among(leader=OTHER, trial_image=Image(ImageIs.PRESENT, "sha256:2")))
    assert (named.steps, named.trial) == ((Do.PIN,), True)
    assert plan(trial, among(leader=OTHER, trial_image=Image(ImageIs.ABSENT))).steps == (Do.FETCH,)


def test_until_an_update_has_a_name_what_runs_goes_on() -> None:
    trial = change.update(wanted(), "b:2", "", "")
    made = plan(trial, among(term=TERM, container=container(), health=READY, writes=False,
                             trial_image=Image(ImageIs.PRESENT, "sha256:2")))  # fmt: skip
    assert (made.steps, made.route) == ((), Route.LOCAL)
    unnamed = change.install(wanted().current.manifest, "", {"web": 35000}, "boot", "")
    changed = plan(unnamed, among(term=TERM, container=container(spec="old"), health=READY, writes=False))
    assert (changed.steps, changed.route) == ((), Route.LOCAL)


def test_who_does_not_run_an_update_does_not_judge_it() -> None:
    trial = change.update(wanted(), "b:2", "sha256:2", "")
    made = plan(trial, among(writes=False, trial_image=Image(ImageIs.REFUSED, reason="no")))
    assert made.verdict is None


def test_clients_wait_where_nobody_leads_it_for_a_moment() -> None:
    assert plan(wanted(), among(image=Image(ImageIs.REFUSED, reason="no"))).route is Route.HOLD
    assert plan(wanted(), at(image=Image(ImageIs.REFUSED, reason="no"))).route is Route.CLOSED
    assert plan(wanted(), among(leader=Leader("n2", "", 4))).route is Route.HOLD, "it is not known yet where that is"


def test_who_failed_too_often_gives_it_to_a_node_that_could_lead_it() -> None:
    failed = among(term=TERM, container=container(Status.EXITED), guarded=True, failures=TOO_MANY, now=96.0)
    assert plan(wanted(), failed).steps == ()
    given = plan(wanted(), msgspec.structs.replace(failed, heirs=True))
    assert (given.steps, given.route) == ((Do.CLOSING, Do.DISARM, Do.WITHDRAW), Route.HOLD)


def test_an_uninstalled_app_is_forgotten_last_and_by_the_leader_of_the_kernel_alone() -> None:
    gone = change.uninstall(wanted(), True, "")
    assert plan(gone, among(term=TERM, container=container(), writes=False)).steps[-2:] == (Do.PURGE, Do.WITHDRAW)
    assert Do.FORGET not in plan(gone, among(leader=OTHER)).steps, "not before its leader has ended it"
    assert plan(gone, among()).steps == (Do.PURGE, Do.FORGET)


BARRED = "its manifest says never on n1"


def test_where_it_may_never_run_it_ends_and_is_given_to_others() -> None:
    runs = among(term=TERM, container=container(), guarded=True, attached=frozenset({"d"}), health=READY, barred=BARRED)
    made = plan(wanted(), runs)
    assert made.steps == (Do.CLOSING, Do.STOP, Do.DISARM, Do.DETACH, Do.WITHDRAW)
    assert (made.state, made.reason, made.route) == (State.STOPPING, BARRED, Route.HOLD)
    assert plan(wanted(), among(barred=BARRED)) == Plan(state=State.PENDING, reason=BARRED, route=Route.HOLD)
    assert plan(wanted(), among(barred=BARRED, leader=OTHER, image=Image(ImageIs.ABSENT))) == Plan(
        state=State.STANDBY, reason="n2 leads it", route=Route.TUNNEL
    ), "it needs no image"
    said = standing(wanted(), among(barred=BARRED), plan(wanted(), among(barred=BARRED)))
    assert said is not None and said.reason == BARRED


def test_a_node_alone_that_may_never_run_it_lets_nobody_wait() -> None:
    assert plan(wanted(), at(barred=BARRED)) == Plan(state=State.PENDING, reason=BARRED, route=Route.CLOSED)


def test_the_leader_of_the_kernel_names_the_image_of_what_it_may_never_run() -> None:
    unnamed = change.install(wanted().current.manifest, "", {"web": 35000}, "boot", "")
    assert plan(unnamed, among(barred=BARRED, image=Image(ImageIs.ABSENT))).steps == (Do.FETCH,)
    assert plan(unnamed, among(barred=BARRED)).steps == (Do.PIN,)
    assert plan(unnamed, among(barred=BARRED, writes=False)).steps == ()
    first = plan(unnamed, among(barred=BARRED, term=TERM, container=container(), health=READY))
    assert first.steps[-1] is Do.WITHDRAW, "what runs ends before"


def test_what_a_manifest_prefers_is_said_with_how_a_node_stands_to_it() -> None:
    liked = wanted("cluster: {prefer: [n3, n2]}\n")
    said = standing(liked, among(), plan(liked, among()))
    assert said is not None and said.prefer == ("n3", "n2")


def test_volumes_are_deleted_once_and_the_rest_goes_on_without() -> None:
    gone = change.uninstall(wanted(), True, "")
    assert plan(gone, among(writes=False)).steps == (Do.PURGE,)
    assert plan(gone, among(writes=False, purged=True)).steps == ()
    assert plan(gone, among(purged=True)).steps == (Do.FORGET,)


def test_the_image_of_what_runs_is_fetched_before_an_update_is_named() -> None:
    trial = change.update(wanted(), "b:2", "", "")
    made = plan(trial, among(leader=OTHER, image=Image(ImageIs.ABSENT), trial_image=Image(ImageIs.PRESENT, "sha256:2")))
    assert (made.steps, made.trial) == ((Do.FETCH,), False)


def test_how_an_update_went_is_said_where_it_cannot_be_written() -> None:
    trial = change.update(wanted(), "b:2", "sha256:2", "")
    runs = among(term=TERM, container=container(spec="new"), trial_image=Image(ImageIs.PRESENT, "sha256:2"), health=READY)
    assert plan(trial, runs).steps == (Do.PROMOTE,)
    told = among(
        term=TERM, container=container(spec="new"), trial_image=Image(ImageIs.PRESENT, "sha256:2"), health=READY, writes=False
    )
    made = plan(trial, told)
    assert (made.steps, made.route, made.verdict) == ((), Route.LOCAL, Do.PROMOTE)
    said = standing(trial, told, made)
    assert said is not None
    assert said.verdict == "promote"
    failed = plan(trial, among(term=TERM, container=container(), health=READY, writes=False,
                               trial_image=Image(ImageIs.REFUSED, reason="no")))  # fmt: skip
    assert (failed.steps, failed.route, failed.verdict) == ((), Route.LOCAL, Do.GIVE_UP)


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        ({}, ""),
        ({"locked": True}, "the node is locked"),
        ({"image": Image(ImageIs.REFUSED, reason="not on this node")}, "not on this node"),
        ({"image": Image(ImageIs.ABSENT), "container": container(Status.RUNNING)}, ""),
        ({"failures": TOO_MANY, "heirs": True}, "it failed there too often: exit 1"),
        ({"failures": TOO_MANY}, ""),
        ({"failures": TOO_MANY, "heirs": True, "now": 95.0 + 3600.0}, ""),
    ],
)
def test_a_node_says_why_it_may_not_lead_it(seen: dict[str, object], why: str) -> None:
    situation = among(**seen)
    said = standing(wanted(), situation, plan(wanted(), situation))
    assert said is not None
    assert said.reason == why


@pytest.mark.parametrize("changes", [{"running": False}, {"enabled": False, "boot_id": "another"}, {"removing": True}])
def test_of_what_is_to_run_nowhere_nothing_is_said(changes: dict[str, object]) -> None:
    desired = wanted(**changes)
    assert standing(desired, among(), plan(desired, among())) is None


def test_a_node_that_is_being_locked_leaves_it_to_others() -> None:
    said = standing(wanted(), among(), plan(wanted(running=False), among()), held=True)
    assert said is not None
    assert said.reason == "nothing starts there now: it is being locked, or stopped"


def test_an_app_with_data_says_that_it_is_bound() -> None:
    made = Plan(state=State.RUNNING, reason="", route=Route.LOCAL)
    bound = standing(wanted("storage: {persistent: {d: {container: /d}}}\n"), among(), made)
    assert bound is not None
    assert bound.at_home
    assert standing(wanted(), among(), made) == Standing(state="running", generation=1)

"""The plan of one app: what is done in which situation, and what is never done."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from services.apps import desired as change
from services.apps.backoff import Failures
from services.apps.desired import Desired, Version
from services.apps.health import Health, Phase
from services.apps.plan import LIMBO_S, REFUSALS, SEVERED_S, plan
from services.apps.podman_status import Status
from services.apps.situation import Do, Image, ImageIs, Plan, Route, Situation, State, TermIs

from .situations import READY, TERM, UP, at, container, manifest, wanted


def test_from_nothing_to_running_in_order() -> None:
    made = plan(wanted(), at())
    assert made.steps == (Do.CAMPAIGN, *UP)
    assert (made.state, made.route) == (State.STARTING, Route.HOLD)


def test_volumes_are_attached_before_the_container_is_made() -> None:
    made = plan(wanted("storage: {persistent: {d: {container: /d}}}\n"), at())
    assert made.steps == (Do.CAMPAIGN, Do.ATTACH, *UP)


def test_what_runs_and_is_ready_gets_the_route_and_nothing_is_done() -> None:
    made = plan(wanted(), at(term=TERM, container=container(), guarded=True, health=READY))
    assert made == Plan(state=State.RUNNING, reason="", route=Route.LOCAL)


def test_what_runs_unguarded_is_armed_first() -> None:
    made = plan(wanted(), at(term=TERM, container=container(armed=False), health=READY))
    assert made.steps == (Do.ARM,)


def test_an_initialised_container_is_armed_before_it_starts() -> None:
    made = plan(wanted(), at(term=TERM, container=container(Status.INITIALIZED, armed=False)))
    assert made.steps == (Do.ARM, Do.START)


def test_a_container_of_a_former_term_whose_token_came_again_is_made_anew() -> None:
    """As with an etcd that was begun anew: its tokens begin at 1 again, and epochs go on."""
    made = plan(wanted(), at(term=TermIs(7, 2), container=container(Status.EXITED), guarded=True))
    assert Do.REMOVE in made.steps
    assert Do.REMOVE not in plan(wanted(), at(term=TERM, container=container(), health=READY)).steps


def test_a_container_of_another_term_is_removed() -> None:
    made = plan(wanted(), at(term=TERM, container=container(token=6), guarded=True))
    assert made.steps == (Do.STOP, Do.DISARM, Do.REMOVE)
    dead = plan(wanted(), at(container=container(Status.EXITED, token=6), guarded=True))
    assert dead.steps == (Do.CAMPAIGN, Do.DISARM, Do.REMOVE, *UP)


def test_stopping_closes_the_term_first_and_gives_it_back_last() -> None:
    made = plan(wanted(running=False), at(term=TERM, container=container(), guarded=True, attached=frozenset({"d"})))
    assert made.steps == (Do.CLOSING, Do.STOP, Do.DISARM, Do.DETACH, Do.WITHDRAW)
    assert made.route is Route.CLOSED


def test_a_stop_that_was_interrupted_is_finished_though_the_app_is_wanted_again() -> None:
    closing = TermIs(7, 1, closing=True)
    made = plan(wanted(), at(term=closing, container=container(Status.EXITED), guarded=True))
    assert made.steps == (Do.DISARM, Do.WITHDRAW)
    assert made.route is Route.HOLD


def test_an_uninstalled_app_leaves_nothing() -> None:
    made = plan(change.uninstall(wanted(), True, ""), at(term=TERM, container=container(), guarded=True))
    assert made.steps == (Do.CLOSING, Do.STOP, Do.DISARM, Do.REMOVE, Do.PURGE, Do.WITHDRAW, Do.FORGET)
    assert Do.PURGE not in plan(change.uninstall(wanted(), False, ""), at()).steps


def test_a_disabled_app_runs_on_until_the_machine_stops() -> None:
    disabled = wanted(enabled=False)
    assert plan(disabled, at(term=TERM, container=container(), health=READY)).state is State.RUNNING
    after_boot = plan(disabled, at(boot_id="another"))
    assert after_boot.state is State.STOPPED
    assert "disabled" in after_boot.reason


def test_nothing_new_opens_while_locked_and_what_runs_is_minded() -> None:
    assert plan(wanted(), at(locked=True)).steps == ()
    assert "locked" in plan(wanted(), at(locked=True)).reason
    crashed = plan(
        wanted(), at(locked=True, term=TERM, container=container(Status.EXITED), failures=Failures().failed(99.0, "x"))
    )
    assert crashed.steps == (Do.INIT, Do.ARM, Do.START)


def test_an_image_that_is_not_here_is_fetched_and_a_refusal_is_the_reason() -> None:
    assert plan(wanted(), at(image=Image(ImageIs.ABSENT))).steps == (Do.FETCH,)
    assert plan(wanted(), at(image=Image(ImageIs.FETCHING, reason="pulls"))).state is State.PULLING
    refused = plan(wanted(), at(image=Image(ImageIs.REFUSED, reason="no registry")))
    assert (refused.state, refused.reason, refused.steps) == (State.PENDING, "no registry", ())


def test_an_image_is_pinned_before_anything_is_made_of_it() -> None:
    unknown = wanted(current=Version(manifest=manifest()))
    assert plan(unknown, at()).steps == (Do.PIN,)


def test_a_changed_manifest_replaces_the_container_in_the_same_term() -> None:
    made = plan(wanted(), at(term=TERM, container=container(spec="old"), guarded=True, health=READY))
    assert made.steps == (Do.STOP, Do.DISARM, Do.REMOVE, *UP)
    assert made.route is Route.HOLD


def test_a_crash_is_answered_at_once_then_later_then_with_failed() -> None:
    failures, states = Failures(), []
    for second in range(7):
        failures = failures.failed(100.0 + second, f"exited with code {second}")
        made = plan(wanted(), at(now=100.0 + second, term=TERM, container=container(Status.EXITED), failures=failures))
        states.append((made.state, bool(made.steps)))
    assert states[0] == (State.STARTING, True)
    assert states[1] == (State.DEGRADED, False)
    assert states[-1] == (State.FAILED, False)
    retried = plan(wanted(), at(now=failures.retry_at, term=TERM, container=container(Status.EXITED), failures=failures))
    assert retried.steps == (Do.INIT, Do.ARM, Do.START)


def test_an_unhealthy_app_is_stopped_and_a_failing_one_still_serves() -> None:
    sick = Health(90.0, Phase.UNHEALTHY, 3, ready_at=91.0, reason="500")
    made = plan(wanted(), at(term=TERM, container=container(), health=sick))
    assert made.steps == (Do.STOP,)
    failing = Health(90.0, Phase.FAILING, 1, ready_at=91.0, reason="500")
    made = plan(wanted(), at(term=TERM, container=container(), health=failing))
    assert (made.state, made.route, made.steps) == (State.DEGRADED, Route.LOCAL, ())


def test_an_app_waits_for_those_that_it_depends_on() -> None:
    made = plan(wanted(), at(waits_for=("db",)))
    assert (made.state, made.reason, made.steps) == (State.PENDING, "waits for db", ())


def test_an_app_without_leadership_has_no_term_and_gives_back_one_that_it_had() -> None:
    always = wanted("cluster: {policy: always_on}\n")
    assert plan(always, at()).steps == (Do.CREATE, Do.INIT, Do.START)
    assert Do.WITHDRAW in plan(always, at(term=TERM, container=container(), guarded=True)).steps
    assert plan(always, at(container=container(token=0, armed=False), health=READY)).route is Route.LOCAL


# --- updates


def on_trial(**changes: object) -> Desired:
    return msgspec.structs.replace(change.update(wanted(), "c:2", "sha256:2", ""), **changes)


def test_the_old_container_serves_until_the_new_image_is_here() -> None:
    seen = at(term=TERM, container=container(), health=READY, trial_image=Image(ImageIs.ABSENT))
    made = plan(on_trial(), seen)
    assert (made.state, made.route, made.steps) == (State.RUNNING, Route.LOCAL, (Do.FETCH,))


def test_a_trial_replaces_is_judged_and_ends() -> None:
    here = {"term": TERM, "guarded": True, "trial_image": Image(ImageIs.PRESENT, "sha256:2")}
    begun = plan(on_trial(), at(**here, container=container(), health=READY))
    assert begun.steps == (Do.STOP, Do.DISARM, Do.REMOVE, *UP)
    assert begun.trial
    runs = container(spec="new")
    assert plan(on_trial(), at(**here, container=runs, health=READY, trial_since_at=99.0)).steps == (Do.PROMOTE,)
    slow = Health(90.0, reason="refused")
    waiting = plan(on_trial(), at(**here, container=runs, health=slow, trial_since_at=99.0))
    assert waiting.steps == ()
    assert waiting.wake_at == 99.0 + 120.0
    late = plan(on_trial(), at(**here, now=300.0, container=runs, health=slow, trial_since_at=99.0))
    assert late.steps == (Do.GIVE_UP,)
    assert "rolled back: not ready within 2m (refused)" in late.note


def test_without_auto_rollback_the_new_one_stays() -> None:
    desired = change.update(wanted("update: {auto_rollback: false}\n"), "c:2", "sha256:2", "")
    sick = Health(90.0, Phase.UNHEALTHY, 3, reason="500")
    seen = at(
        term=TERM,
        container=container(spec="new"),
        health=sick,
        trial_since_at=99.0,
        trial_image=Image(ImageIs.PRESENT, "sha256:2"),
    )
    made = plan(desired, seen)
    assert made.steps == (Do.PROMOTE,)
    assert "not well: 500" in made.note


def test_an_update_whose_image_cannot_be_had_is_given_up_and_the_old_one_stays() -> None:
    seen = at(term=TERM, container=container(), health=READY, trial_image=Image(ImageIs.REFUSED, reason="no registry"))
    made = plan(on_trial(), seen)
    assert made.steps == (Do.GIVE_UP,)
    assert made.route is Route.LOCAL


# --- what holds in every situation


def _every_situation() -> list[tuple[Desired, Situation]]:
    desired = [
        wanted(),
        wanted(running=False),
        change.uninstall(wanted(), True, ""),
        on_trial(),
        wanted("cluster: {policy: always_on}\n"),
    ]
    terms = [None, TERM, TermIs(7, 1, closing=True), TermIs(8, 2)]
    containers = [
        None,
        *(container(status, token, spec) for status in Status for token in (0, 7) for spec in ("now", "new", "old")),
    ]
    healths = [None, READY, Health(90.0), Health(90.0, Phase.UNHEALTHY)]
    images = [Image(ImageIs.PRESENT, "sha256:1"), Image(ImageIs.ABSENT), Image(ImageIs.REFUSED, reason="no registry")]
    return [
        (d, at(term=t, container=c, health=h, image=i, locked=locked, guarded=c is not None and c.status.has_processes))
        for d, t, c, h, i, locked in itertools.product(desired, terms, containers, healths, images, (False, True))
    ]


def test_in_every_situation_the_order_and_the_gates_hold() -> None:
    for desired, seen in _every_situation():
        made = plan(desired, seen)
        steps = made.steps
        case = f"{desired.running=} {seen} -> {made}"
        led = desired.current.manifest.is_led
        if Do.START in steps and led:
            assert steps.index(Do.ARM) < steps.index(Do.START), case
            assert Do.CAMPAIGN in steps or (seen.term is not None and not seen.term.closing), case
        if Do.WITHDRAW in steps:
            assert Do.START not in steps, case
            alive = seen.container is not None and seen.container.status.has_processes
            assert not alive or steps.index(Do.STOP) < steps.index(Do.DISARM) < steps.index(Do.WITHDRAW), case
            assert seen.term is not None, case
            assert seen.term.closing or steps.index(Do.CLOSING) < steps.index(Do.WITHDRAW), case
        if seen.locked:
            assert not {Do.CAMPAIGN, Do.ATTACH, Do.CREATE, Do.PIN, Do.PROMOTE, Do.GIVE_UP, Do.FORGET, Do.PURGE} & set(steps), (
                case
            )
        if made.route is Route.LOCAL:
            assert seen.container is not None, case
            assert seen.container.status is Status.RUNNING, case
            assert not {Do.STOP, Do.REMOVE} & set(steps), case
            assert not led or (seen.term is not None and seen.term.token == seen.container.badge.token), case
        assert made.reason or made.state is State.RUNNING, case


@pytest.mark.parametrize("seed", range(5))
def test_carrying_plans_out_ends_where_it_was_wanted(seed: int) -> None:
    """A toy world in which every step works: each desire is reached in a few passes, from any beginning."""
    situations = _every_situation()
    for desired, seen in situations[seed :: len(situations) // 150]:
        if seen.locked or desired.candidate is not None or seen.image.status is not ImageIs.PRESENT:
            continue
        for _ in range(12):
            made = plan(desired, seen)
            if not made.steps or Do.FORGET in made.steps:
                break
            for step in made.steps:
                seen = _after(step, desired, seen)
        final = plan(desired, seen)
        assert (
            Do.FORGET in made.steps
            if desired.removing
            else final.state in (State.RUNNING, State.STOPPED, State.DEGRADED, State.STARTING)
        ), final


def _after(step: Do, desired: Desired, seen: Situation) -> Situation:
    token = seen.term.token if seen.term is not None and desired.current.manifest.is_led else 0
    changes: dict[Do, dict[str, object]] = {
        Do.CAMPAIGN: {"term": TermIs(9, 3)},
        Do.CLOSING: {"term": msgspec.structs.replace(seen.term, closing=True) if seen.term else None},
        Do.WITHDRAW: {"term": None},
        Do.CREATE: {"container": container(Status.CREATED, token, "now")},
        Do.REMOVE: {"container": None, "guarded": False},
        Do.DISARM: {"guarded": False},
        Do.ARM: {"guarded": True},
        Do.DETACH: {"attached": frozenset()},
    }
    if step in (Do.INIT, Do.START, Do.STOP) and seen.container is not None:
        status = {Do.INIT: Status.INITIALIZED, Do.START: Status.RUNNING, Do.STOP: Status.EXITED}[step]
        return msgspec.structs.replace(
            seen, container=msgspec.structs.replace(seen.container, status=status), health=READY if step is Do.START else None
        )
    if step is Do.ARM and seen.container is not None:
        seen = msgspec.structs.replace(seen, container=msgspec.structs.replace(seen.container, armed=True))
    return msgspec.structs.replace(seen, **changes.get(step, {}))


# --- what podman left half done


@pytest.mark.parametrize("health", [None, READY])
def test_a_container_that_cannot_be_reached_is_made_anew_after_a_moment(health: Health | None) -> None:
    seen = at(term=TERM, container=container(), guarded=True, health=health, severed="the bridge is gone", limbo_since_at=99.5)
    waits = plan(wanted(), seen)
    assert (waits.state, waits.route, waits.steps, waits.wake_at) == (State.DEGRADED, Route.HOLD, (), 99.5 + SEVERED_S)
    made = plan(wanted(), msgspec.structs.replace(seen, limbo_since_at=100.0 - SEVERED_S))
    assert made.steps == (Do.STOP, Do.DISARM, Do.REMOVE) and made.route is Route.HOLD
    assert made.failed == "the bridge is gone" and "the bridge is gone" in made.reason


def test_what_was_made_anew_says_why_and_waits_its_turn() -> None:
    once = Failures().failed(99.0, "the bridge is gone")
    made = plan(wanted(), at(term=TERM, failures=once))
    assert made.steps == UP and made.reason == "made anew: the bridge is gone"
    often = once.failed(99.9, "the bridge is gone").failed(99.95, "the bridge is gone")
    assert plan(wanted(), at(term=TERM, failures=often)).steps == ()


def test_while_locked_a_container_that_cannot_be_reached_is_only_started_again() -> None:
    seen = at(term=TERM, container=container(), guarded=True, locked=True, severed="x", limbo_since_at=100.0 - SEVERED_S)
    assert plan(wanted(), seen).steps == (Do.STOP,)


@pytest.mark.parametrize("status", [Status.STOPPING, Status.UNKNOWN])
def test_an_end_that_does_not_come_is_waited_for_so_long(status: Status) -> None:
    seen = at(term=TERM, container=container(status), guarded=True, limbo_since_at=100.0 - LIMBO_S + 0.1)
    assert plan(wanted(), seen).steps == ()
    late = plan(wanted(), msgspec.structs.replace(seen, limbo_since_at=100.0 - LIMBO_S))
    assert late.steps == (Do.STOP, Do.DISARM, Do.REMOVE) and str(status) in late.reason


def test_a_removal_that_broke_off_is_done_once_more() -> None:
    seen = at(term=TERM, container=container(Status.REMOVING), guarded=True)
    assert plan(wanted(), seen).steps == (Do.DISARM, Do.REMOVE, *UP)
    assert plan(wanted(removing=True), seen).steps == (Do.CLOSING, Do.DISARM, Do.REMOVE, Do.WITHDRAW, Do.FORGET)


@pytest.mark.parametrize("status", [Status.CREATED, Status.INITIALIZED, Status.EXITED])
def test_a_container_that_podman_cannot_start_is_made_anew(status: Status) -> None:
    seen = at(term=TERM, container=container(status), guarded=True, refusals=REFUSALS - 1)
    assert Do.REMOVE not in plan(wanted(), seen).steps
    assert Do.REMOVE in plan(wanted(), msgspec.structs.replace(seen, refusals=REFUSALS)).steps
    locked = msgspec.structs.replace(seen, refusals=REFUSALS, locked=True)
    assert Do.REMOVE not in plan(wanted(), locked).steps, "while locked there is no way to make another"


def test_a_name_that_podman_keeps_for_nobody_is_freed() -> None:
    assert plan(wanted(), at(term=TERM, refusals=1)).steps == (Do.REMOVE, *UP)

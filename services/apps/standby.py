"""Of an app that another node leads, or may lead: what of it ends here, and how this node stands to it. Pure."""

from __future__ import annotations

from piccolod.leadership.placement import Standing
from services.apps.desired import Desired
from services.apps.manifest import Policy
from services.apps.podman_status import Status
from services.apps.situation import Container, Do, ImageIs, Leader, Plan, Route, Situation, State


def aside(desired: Desired, now: Situation) -> Plan:
    """Another node leads it: nothing of it stays here, and this node leads to that one."""
    leader = now.leader
    assert leader is not None
    steps: list[Do] = []
    if now.container is not None:
        steps += replace(now.container, now)
    elif now.guarded:
        steps.append(Do.DISARM)
    if now.attached:
        steps.append(Do.DETACH)
    state = State.STOPPING if now.container is not None and now.container.status.has_processes else State.STANDBY
    reason = f"{leader.node} leads it"
    if not now.locked and not now.barred and now.image.status is not ImageIs.PRESENT:
        reason = f"{reason}; this node could not yet: {now.image.reason or 'it fetches the image'}"
        if now.image.status is ImageIs.ABSENT:
            steps.append(Do.FETCH)
    step, trial = (None, False) if steps else named(desired, now)
    if step is not None:
        steps.append(step)
    return Plan(state=state, reason=reason, route=_towards(desired, leader), steps=tuple(steps), trial=trial)


def named(desired: Desired, now: Situation) -> tuple[Do | None, bool]:
    """What the kernel's leader does so that the app's leader learns which image is meant, and whether of the candidate."""
    trial = desired.candidate is not None
    version, image = (desired.candidate, now.trial_image) if trial else (desired.current, now.image)
    if version is None or version.image_id or not now.writes or now.locked:
        return None, False
    if image.status is ImageIs.PRESENT:
        return Do.PIN, trial
    return (Do.FETCH, trial) if image.status is ImageIs.ABSENT else (None, False)


def _towards(desired: Desired, leader: Leader) -> Route:
    if desired.current.manifest.cluster.policy is not Policy.FOLLOWER_PROXY:
        return Route.CLOSED
    return Route.TUNNEL if leader.peer else Route.HOLD


def replace(container: Container, now: Situation) -> tuple[Do, ...]:
    """What takes a container away, proven."""
    alive = container.status.has_processes
    return (*((Do.STOP,) if alive else ()), *((Do.DISARM,) if alive or now.guarded else ()), Do.REMOVE)


def standing(desired: Desired, now: Situation, made: Plan, *, held: bool = False) -> Standing | None:
    """How this node stands to the app, for the others; None: nobody is to lead it. `held`: nothing starts here for a while."""
    if not desired.wanted(now.boot_id) or not desired.current.manifest.is_led:
        return None
    return Standing(
        reason="nothing starts there now: it is being locked, or stopped" if held else _unfit(desired, now),
        failures=now.failures.lately(now.now),
        prefer=desired.current.manifest.cluster.prefer,
        at_home=desired.current.manifest.is_stateful,
        state=made.state,
        verdict=made.verdict or "",
        generation=desired.generation,
    )


def _unfit(desired: Desired, now: Situation) -> str:
    """Why this node may not lead it, or may not for now."""
    if now.barred:
        return now.barred
    if now.locked:
        return "the node is locked"
    runs = now.container is not None and now.container.status is Status.RUNNING
    if now.image.status is not ImageIs.PRESENT and not runs:
        return now.image.reason or "the image is not there"
    if not desired.current.image_id and not now.writes:
        return "the kernel's leader has not named its image yet"
    if now.heirs and now.failures.is_banned(now.now):
        return f"it failed there too often: {now.failures.reason}"
    return ""

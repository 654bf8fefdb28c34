"""From desired and actual to the next steps of one app on this node: pure, level-triggered, and with a reason.

Invariant: nothing of a led app starts but under an open term whose token is the container's own; nothing is released
before its effects are proven stopped. `plan` looks at one situation and forgets: whoever dies between two steps is
followed by somebody who looks again.

    aside   another node leads it: whatever of it is here ends, route tunnel
    up      fetch -> campaign -> attach -> create -> init, arm -> start -> (ready) -> route local
    down    route closed -> closing -> stop, proven -> disarm -> detach -> withdraw
    trial   the candidate's container replaces the current one; ready in time: promote, otherwise give up, and back
"""

from __future__ import annotations

from typing import Final

import msgspec

from services.apps.desired import Desired, Version
from services.apps.health import Phase
from services.apps.podman_status import Status
from services.apps.situation import Container, Do, Image, ImageIs, Plan, Route, Situation, State
from services.apps.standby import aside, named, replace

# What is lost for a moment while podman works on it comes back within this; clients are held meanwhile.
SEVERED_S: Final = 1.0
# podman's cleanup after an exit takes 0.1 s, on a busy machine seconds; a monitor that was killed never begins it.
LIMBO_S: Final = 10.0
REFUSALS: Final = 3


def plan(desired: Desired, now: Situation) -> Plan:
    if not desired.wanted(now.boot_id) or _term_ends(desired, now):
        return _down(desired, now)
    if now.leader is not None and now.term is None and desired.current.manifest.is_led:
        return aside(desired, now)
    if now.barred:
        return _barred(desired, now)
    if desired.candidate is not None:
        return _trial(desired, now)
    return _up(desired, desired.current, now, now.digest, now.image, trial=False)


def _term_ends(desired: Desired, now: Situation) -> bool:
    """A closing term cannot be used again, and an app that is no longer led, or no longer here, needs none."""
    return now.term is not None and (now.term.closing or not desired.current.manifest.is_led or now.barred != "")


# --- down


def _barred(desired: Desired, now: Situation) -> Plan:
    """It ends here. Others may be waiting for the leader of the kernel, which this node may be, to name its image."""
    made = _down(desired, now)
    step, trial = (None, False) if made.steps else named(desired, now)
    return msgspec.structs.replace(made, steps=(*made.steps, *((step,) if step is not None else ())), trial=trial)


def _down(desired: Desired, now: Situation) -> Plan:
    """Stop politely, prove it, then give back what was held: in this order, whatever of it is already done."""
    again = desired.wanted(now.boot_id)
    # What may never run here, and has nowhere else to run, leaves nothing to wait for.
    route = Route.HOLD if again and (now.clustered or not now.barred) else Route.CLOSED
    why = _why_down(desired, now, again)
    steps: list[Do] = []
    container = now.container
    alive = container is not None and container.status.has_processes
    if now.term is not None and not now.term.closing:
        steps.append(Do.CLOSING)
    if alive:
        steps.append(Do.STOP)
    if alive or now.guarded:
        steps.append(Do.DISARM)
    if container is not None and desired.removing:
        steps.append(Do.REMOVE)
    if now.attached:
        steps.append(Do.DETACH)
    if desired.removing and desired.purge and not (now.purged or now.locked) and now.leader is None:
        steps.append(Do.PURGE)  # within the term: once that is over, the app is forgotten elsewhere
    if now.term is not None:
        steps.append(Do.WITHDRAW)
    if desired.removing:
        if now.locked:
            reason = "to be uninstalled when the store is unlocked"
            return Plan(state=State.STOPPED, reason=reason, route=route, steps=tuple(steps))
        if now.leader is not None or not now.writes:
            who = now.leader.node if now.leader is not None else "the kernel's leader"
            return Plan(state=State.STOPPING, reason=f"is being uninstalled: {who} goes on", route=route, steps=tuple(steps))
        return Plan(
            state=State.STOPPING,
            reason="is being uninstalled",
            route=route,
            steps=(*steps, Do.FORGET),
        )
    if steps:
        return Plan(state=State.STOPPING, reason=why, route=route, steps=tuple(steps))
    return Plan(state=State.PENDING if again else State.STOPPED, reason=why, route=route)


def _why_down(desired: Desired, now: Situation, again: bool) -> str:
    if again and now.barred:
        return now.barred
    if again:
        return "its term ends before a new one begins"
    if desired.running and not desired.enabled:
        return "disabled: it does not start by itself after a boot"
    return "stopped by its admin"


# --- up


def _up(desired: Desired, version: Version, now: Situation, digest: str, image: Image, *, trial: bool) -> Plan:
    container = now.container
    led = version.manifest.is_led
    if container is not None and _foreign(container, now, led):
        if not container.status.has_processes:
            return _begin(version, now, image, trial=trial)
        return Plan(
            state=State.STARTING,
            reason="a container of another term is in the way",
            route=Route.HOLD,
            steps=replace(container, now),
        )
    if container is not None and now.spoiled:
        return Plan(state=State.STARTING, reason=now.spoiled, route=Route.HOLD, steps=replace(container, now))
    if container is None or container.badge.spec != digest:
        return _begin(version, now, image, trial=trial)
    status = container.status
    if status is Status.REMOVING:
        return _begin(version, now, image, trial=trial)
    if why := _hopeless(container, now):
        return _give_up(container, now, why)
    if status in (Status.CREATED, Status.INITIALIZED):
        return _ignite(version, now, led)
    if status is Status.EXITED:
        return _again(version, now, led)
    if status is Status.RUNNING:
        return _running(version, now, led)
    if status is Status.PAUSED:
        return Plan(state=State.DEGRADED, reason="its container is paused", route=Route.HOLD)
    return Plan(state=State.STARTING, reason=f"its container is {status}", route=Route.HOLD, wake_at=now.now + 0.03)


def _hopeless(container: Container, now: Situation) -> str:
    """Why this container will never serve as it is, however long one waits."""
    limbo_s = now.now - now.limbo_since_at if now.limbo_since_at else 0.0
    if now.severed and limbo_s >= SEVERED_S:
        return now.severed
    if container.status in (Status.STOPPING, Status.UNKNOWN) and limbo_s >= LIMBO_S:
        return f"podman leaves it {container.status} for {LIMBO_S:g} s"
    if container.status in (Status.CREATED, Status.INITIALIZED, Status.EXITED) and now.refusals >= REFUSALS and not now.locked:
        return f"podman could not start it {REFUSALS} times"
    return ""


def _give_up(container: Container, now: Situation, why: str) -> Plan:
    """Another container takes its place, in a network of its own; while locked the same one is started again."""
    steps = (Do.STOP,) if now.locked else replace(container, now)
    return Plan(state=State.STARTING, reason=f"made anew: {why}", route=Route.HOLD, steps=steps, failed=why)


def _foreign(container: Container, now: Situation, led: bool) -> bool:
    """Whether it was made under a term that is not the one of now: it may not run, and cannot be taken over."""
    if not led:
        return container.badge.token != 0
    return now.term is None or (now.term.token, now.term.epoch) != (container.badge.token, container.badge.epoch)


def _begin(version: Version, now: Situation, image: Image, *, trial: bool) -> Plan:
    """There is no container of this version: get all that it needs, in order."""
    container = now.container
    serves = container is not None and container.status is Status.RUNNING
    elsewhere = now.clustered and version.manifest.is_led  # another node may lead it in a moment
    waiting = Route.CLOSED if container is None and not elsewhere else Route.HOLD
    if now.locked:
        reason = "locked: nothing new starts until the store is unlocked"
        return Plan(state=State.PENDING, reason=reason, route=waiting, steps=_given_back(now))
    if image.status is not ImageIs.PRESENT:
        without = _without_image(now, image, waiting)
        return msgspec.structs.replace(without, steps=(*_given_back(now), *without.steps))
    steps: list[Do] = []
    if image.id and version.image_id != image.id:
        # Pinned first and looked at again: what is created must be what the document names.
        if not now.writes:
            reason = "the image is here, and the kernel's leader has not named it yet"
            route = _kept(version, now) if serves else waiting
            return Plan(state=State.PENDING, reason=reason, route=route, steps=_given_back(now))
        return Plan(state=State.STARTING, reason="the image is here", route=waiting, steps=(Do.PIN,), trial=trial)
    if now.waits_for and not serves:
        reason = f"waits for {', '.join(now.waits_for)}"
        return Plan(state=State.PENDING, reason=reason, route=waiting, wake_at=now.now + 1.0)
    if now.failures.retry_at > now.now and not serves:
        return _wait(now)
    if version.manifest.is_led and now.term is None:
        steps.append(Do.CAMPAIGN)
    if container is not None:
        steps += replace(container, now)
    elif now.guarded:
        steps.append(Do.DISARM)
    if container is None and now.refusals:
        steps.append(Do.REMOVE)  # what podman does not show may still hold the name, or the last free address
    if missing_volumes(version, now):
        steps.append(Do.ATTACH)
    steps += [Do.CREATE, Do.INIT, *((Do.ARM,) if version.manifest.is_led else ()), Do.START]
    reason = "a new container takes the place of the old one" if serves else "is being started"
    if container is None and now.failures.row:
        reason = f"made anew: {now.failures.reason}"
    return Plan(state=State.STARTING, reason=reason, route=Route.HOLD, steps=tuple(steps), trial=trial)


def _given_back(now: Situation) -> tuple[Do, ...]:
    """A term in which nothing can begin is for another node, where there may be one."""
    if not now.clustered or now.term is None or now.container is not None:
        return ()
    return (Do.CLOSING, Do.WITHDRAW)


def missing_volumes(version: Version, now: Situation) -> frozenset[str]:
    return frozenset(version.manifest.storage.persistent) - now.attached


def _without_image(now: Situation, image: Image, route: Route) -> Plan:
    if image.status is ImageIs.FETCHING:
        return Plan(state=State.PULLING, reason=image.reason or "the image is being fetched", route=route)
    if image.status is ImageIs.REFUSED:
        return Plan(state=State.PENDING, reason=image.reason, route=route)
    return Plan(state=State.PULLING, reason="the image is not on this node", route=route, steps=(Do.FETCH,))


def _ignite(version: Version, now: Situation, led: bool) -> Plan:
    """The container is there and has run nothing yet."""
    container = now.container
    assert container is not None
    steps: list[Do] = []
    if missing_volumes(version, now):
        if now.locked:
            return Plan(state=State.PENDING, reason="locked: its volumes cannot be opened", route=Route.HOLD)
        steps.append(Do.ATTACH)
    if container.status is not Status.INITIALIZED:
        steps.append(Do.INIT)
    if led:
        steps.append(Do.ARM)
    return Plan(state=State.STARTING, reason="is being started", route=Route.HOLD, steps=(*steps, Do.START))


def _again(version: Version, now: Situation, led: bool) -> Plan:
    """Its process ended by itself."""
    if now.failures.retry_at > now.now:
        return _wait(now)
    again = _ignite(version, now, led)
    reason = now.failures.reason or "its process ended"
    return msgspec.structs.replace(again, reason=f"restarted: {reason}") if again.steps else again


def _wait(now: Situation) -> Plan:
    failures = now.failures
    if failures.too_many:
        if now.heirs and now.term is not None:
            steps = (Do.CLOSING, *((Do.DISARM,) if now.guarded else ()), Do.WITHDRAW)
            return Plan(
                state=State.FAILED, reason=f"{failures.reason}; another node is to lead it", route=Route.HOLD, steps=steps
            )
        return Plan(state=State.FAILED, reason=failures.reason, route=Route.CLOSED, wake_at=failures.retry_at)
    return Plan(state=State.DEGRADED, reason=failures.reason, route=Route.HOLD, wake_at=failures.retry_at)


def _running(version: Version, now: Situation, led: bool) -> Plan:
    container, health = now.container, now.health
    assert container is not None
    arm = (Do.ARM,) if led and not container.armed else ()
    if now.severed:
        wake_at = now.limbo_since_at + SEVERED_S
        return Plan(state=State.DEGRADED, reason=now.severed, route=Route.HOLD, steps=arm, wake_at=wake_at)
    if health is None or health.phase is Phase.STARTING:
        reason = "waits for its first answer" + (f" ({health.reason})" if health is not None and health.reason else "")
        return Plan(state=State.STARTING, reason=reason, route=Route.HOLD, steps=arm)
    if health.phase is Phase.UNHEALTHY:
        return Plan(
            state=State.DEGRADED,
            reason=f"restarted as unhealthy: {health.reason}",
            route=Route.HOLD,
            steps=(*arm, Do.STOP),
        )
    if health.phase is Phase.FAILING:
        return Plan(state=State.DEGRADED, reason=health.reason, route=Route.LOCAL, steps=arm)
    return Plan(state=State.RUNNING, reason="", route=Route.LOCAL, steps=arm)


# --- trial


def _trial(desired: Desired, now: Situation) -> Plan:
    """An update. The old container serves until the new image is here; then the new one has `health_deadline`."""
    candidate = desired.candidate
    assert candidate is not None
    if now.locked:
        # The trial can be neither won nor lost while nothing can be written: what runs goes on.
        version = candidate if _is_trial(now) else desired.current
        return _up(desired, version, now, now.trial_digest if _is_trial(now) else now.digest, now.image, trial=False)
    if now.trial_image.status is ImageIs.REFUSED:
        note = f"the update to {_called(candidate)} was not possible: {now.trial_image.reason}"
        return _judged(desired, now, Do.GIVE_UP, note)
    if now.trial_image.status is not ImageIs.PRESENT:
        old = _up(desired, desired.current, now, now.digest, now.image, trial=False)
        fetch = (Do.FETCH,) if now.trial_image.status is ImageIs.ABSENT else ()
        reason = f"fetches {_called(candidate)} for an update"
        return msgspec.structs.replace(old, steps=(*old.steps, *fetch), reason=old.reason or reason, trial=bool(fetch))
    if not candidate.image_id and not now.writes:
        runs = _up(desired, desired.current, now, now.digest, now.image, trial=False)
        reason = f"{_called(candidate)} is here, and the kernel's leader has not named it yet"
        return msgspec.structs.replace(runs, reason=runs.reason or reason)
    if not candidate.image_id:
        route = _kept(desired.current, now)
        return Plan(state=State.STARTING, reason="the image is here", route=route, steps=(Do.PIN,), trial=True)
    if _is_trial(now):
        if now.health is not None and now.health.phase is Phase.READY:
            return _judged(desired, now, Do.PROMOTE, f"updated to {_called(candidate)}")
        if (why := _lost(desired, now)) and desired.current.manifest.update.auto_rollback:
            return _judged(desired, now, Do.GIVE_UP, f"the update to {_called(candidate)} was rolled back: {why}")
        if why:
            return _judged(desired, now, Do.PROMOTE, f"updated to {_called(candidate)}, which is not well: {why}")
    tried = _up(desired, candidate, now, now.trial_digest, now.trial_image, trial=True)
    deadline = now.trial_since_at + candidate.manifest.update.health_deadline_s if now.trial_since_at else 0.0
    wake_at = min((at for at in (tried.wake_at, deadline) if at), default=0.0)
    return msgspec.structs.replace(tried, reason=f"update to {_called(candidate)}: {tried.reason}", wake_at=wake_at, trial=True)


def _is_trial(now: Situation) -> bool:
    return now.container is not None and now.container.badge.spec == now.trial_digest


def _lost(desired: Desired, now: Situation) -> str:
    """Why the trial is over; empty while it may still be won."""
    assert desired.candidate is not None
    deadline_s = desired.candidate.manifest.update.health_deadline_s
    if now.health is not None and now.health.phase is Phase.UNHEALTHY:
        return now.health.reason
    if now.failures.row >= 3:
        return now.failures.reason
    if now.trial_since_at and now.now >= now.trial_since_at + deadline_s:
        last = now.health.reason if now.health is not None else now.failures.reason
        return f"not ready within {desired.candidate.manifest.update.health_deadline}" + (f" ({last})" if last else "")
    return ""


def _judged(desired: Desired, now: Situation, verdict: Do, note: str) -> Plan:
    if not now.writes:
        version, digest = (desired.candidate, now.trial_digest) if _is_trial(now) else (desired.current, now.digest)
        assert version is not None
        runs = _up(desired, version, now, digest, Image(ImageIs.PRESENT), trial=_is_trial(now))
        if now.term is None and version.manifest.is_led:
            return runs  # who does not run it cannot judge it
        return msgspec.structs.replace(runs, reason=f"{note}, which the kernel's leader has not written yet", verdict=verdict)
    return Plan(state=State.STARTING, reason=note, route=_kept(desired.current, now), steps=(verdict,), note=note)


def _kept(version: Version, now: Situation) -> Route:
    """The route of what runs now, which the step in hand does not touch."""
    container = now.container
    if container is None or container.status is not Status.RUNNING:
        return Route.HOLD
    serves = now.health is not None and now.health.serves
    return Route.LOCAL if serves and not _foreign(container, now, version.manifest.is_led) else Route.HOLD


def _called(version: Version) -> str:
    return version.manifest.image or version.image_id[:19] or "its build"

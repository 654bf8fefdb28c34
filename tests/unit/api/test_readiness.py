from __future__ import annotations

from piccolod.protocol.base import Level
from piccolod.protocol.events import HealthChanged, LockStateChanged
from services.api.readiness import (
    Seen,
    components,
    expect,
    health_changed,
    lock_changed,
    module_changed,
    readiness,
)


def state(seen: Seen, name: str, value: str, now: float = 0.0, reason: str = "") -> Seen:
    return module_changed(seen, name, value, reason, now)


def lock(seen: Seen, *, locked: bool, initialized: bool = True) -> Seen:
    return lock_changed(seen, LockStateChanged(locked=locked, initialized=initialized, rev=1))


def ready() -> Seen:
    return lock(state(state(expect(["apps", "persistence"], 0.0), "apps", "ready"), "persistence", "ready"), locked=False)


def test_a_node_whose_modules_are_ready_is_ready() -> None:
    found = readiness(ready(), 1.0)
    assert (found.ready, found.level) == (True, Level.OK)


def test_before_anything_was_heard_it_is_not_and_says_who_is_missing() -> None:
    found = readiness(expect(["apps"], 0.0), 0.1)
    assert (found.ready, found.component, found.reason) == (False, "apps", "starting")


def test_locked_is_not_ready_and_not_ill() -> None:
    found = readiness(lock(ready(), locked=True), 1.0)
    assert (found.ready, found.level, found.component, found.reason) == (False, Level.OK, "lock", "locked")


def test_a_node_without_a_password_says_so() -> None:
    found = readiness(lock(ready(), locked=True, initialized=False), 1.0)
    assert found.reason == "locked: no password was set yet"


def test_a_restart_is_no_fault_until_it_takes_long() -> None:
    seen = state(ready(), "apps", "restarting", now=10.0, reason="killed")
    assert readiness(seen, 11.9).ready
    assert components(seen, 11.9)["apps"].level is Level.WARN
    late = readiness(seen, 12.1)
    assert (late.ready, late.level, late.component, late.reason) == (False, Level.ERROR, "apps", "restarting: killed")


def test_the_time_of_a_restart_counts_over_its_states() -> None:
    seen = state(state(ready(), "apps", "restarting", now=10.0), "apps", "starting", now=11.5)
    assert not readiness(seen, 12.1).ready


def test_crashlooping_is_a_fault_at_once() -> None:
    found = readiness(state(ready(), "apps", "crashlooping", now=10.0, reason="6 deaths"), 10.0)
    assert (found.ready, found.level, found.reason) == (False, Level.ERROR, "crashlooping: 6 deaths")


def test_an_error_that_a_component_tells_of_itself_is_a_fault_and_a_warning_is_none() -> None:
    warned = health_changed(ready(), HealthChanged(component="apps", level=Level.WARN, reason="slow disk"))
    assert (readiness(warned, 1.0).ready, readiness(warned, 1.0).level) == (True, Level.WARN)
    ill = health_changed(warned, HealthChanged(component="podman", level=Level.ERROR, reason="not installed"))
    assert (readiness(ill, 1.0).component, readiness(ill, 1.0).reason) == ("podman", "not installed")


def test_a_role_is_shown_and_is_no_warning() -> None:
    seen = health_changed(ready(), HealthChanged(component="persistence", level=Level.OK, role="follower"))
    assert components(seen, 1.0)["persistence"].role == "follower"
    assert readiness(seen, 1.0).level is Level.OK


def test_a_disabled_module_is_not_waited_for() -> None:
    assert readiness(state(ready(), "apps", "disabled"), 1.0).ready

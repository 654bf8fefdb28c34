"""Is this node fit for work, and if not, what is at fault. Pure: folds what components say of themselves.

A role is never a fault, and neither is the lock: a locked node is healthy and refuses work. A module that is being
restarted is no fault either, unless that takes long: it is back before a client could care.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

import msgspec

from piccolod.protocol.base import Level
from piccolod.protocol.events import HealthChanged, LockStateChanged

_FINE: Final = frozenset({"ready", "disabled", "absent"})
_LEADING: Final = "consensus"
_LOOPING: Final = "crashlooping"
_PATIENCE_S: Final = 2.0
_WORSE: Final = {Level.OK: 0, Level.WARN: 1, Level.ERROR: 2}


class ComponentHealth(msgspec.Struct, frozen=True, kw_only=True):
    level: Level
    reason: str = ""
    role: str = ""


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """`level` is the worst of all components. `component` and `reason` name what keeps the node from being ready.

    `role`: leader, follower or unknown, of the kernel; each of them may be ready.
    """

    ready: bool
    level: Level
    component: str = ""
    reason: str = ""
    role: str = ""


@dataclass(frozen=True, slots=True)
class ModuleSeen:
    state: str
    reason: str
    was_ready: bool
    unready_at: float  # since when it is not ready


@dataclass(frozen=True, slots=True)
class Seen:
    """All that was heard so far. `lock` None: persistence has not spoken yet. `locked_because`: why no peer unlocks it."""

    modules: Mapping[str, ModuleSeen] = field(default_factory=lambda: MappingProxyType({}))
    health: Mapping[str, ComponentHealth] = field(default_factory=lambda: MappingProxyType({}))
    lock: LockStateChanged | None = None
    locked_because: str = ""


def expect(modules: Iterable[str], now: float) -> Seen:
    """Before anything was heard: every module of the table is still to come."""
    return Seen(MappingProxyType({name: ModuleSeen("starting", "", False, now) for name in modules}))


def module_changed(seen: Seen, name: str, state: str, reason: str, now: float) -> Seen:
    before = seen.modules.get(name)
    fine = state in _FINE
    was_fine = before is not None and before.state in _FINE
    since = now if fine or was_fine or before is None else before.unready_at
    known = ModuleSeen(state, reason, fine or (before is not None and before.was_ready), since)
    return replace(seen, modules=MappingProxyType({**seen.modules, name: known}))


def health_changed(seen: Seen, event: HealthChanged) -> Seen:
    said = ComponentHealth(level=event.level, reason=event.reason, role=event.role)
    return replace(seen, health=MappingProxyType({**seen.health, event.component: said}))


def lock_changed(seen: Seen, event: LockStateChanged) -> Seen:
    return replace(seen, lock=event)


def locked_because(seen: Seen, reason: str) -> Seen:
    return replace(seen, locked_because=reason)


def components(seen: Seen, now: float) -> dict[str, ComponentHealth]:
    """The worse of what the supervisor sees and what a component says of itself."""
    found = {name: _judge(module, seen.health.get(name), now) for name, module in seen.modules.items()}
    found |= {name: said for name, said in seen.health.items() if name not in found}
    found["lock"] = ComponentHealth(level=Level.OK, reason=_lock_reason(seen))
    return found


def with_role(
    judged: Readiness, found: dict[str, ComponentHealth], role: str
) -> tuple[Readiness, dict[str, ComponentHealth]]:  # fmt: skip
    """The same, with this node's role for the kernel where people look for it: it changes no judgement."""
    of = found.get(_LEADING)
    told = found if of is None else {**found, _LEADING: msgspec.structs.replace(of, role=of.role or role)}
    return msgspec.structs.replace(judged, role=role), told


def readiness(seen: Seen, now: float) -> Readiness:
    judged = components(seen, now)
    worst = max((each.level for each in judged.values()), key=_WORSE.__getitem__)
    for name, each in judged.items():
        if each.level is Level.ERROR:
            return Readiness(ready=False, level=worst, component=name, reason=each.reason)
    for name, module in seen.modules.items():
        if module.state not in _FINE and not module.was_ready:
            return Readiness(ready=False, level=worst, component=name, reason=judged[name].reason)
    if reason := _lock_reason(seen):
        return Readiness(ready=False, level=worst, component="lock", reason=reason)
    return Readiness(ready=True, level=worst)


def _judge(module: ModuleSeen, said: ComponentHealth | None, now: float) -> ComponentHealth:
    own = said or ComponentHealth(level=Level.OK)
    if module.state in _FINE:
        reason = own.reason or ("" if module.state == "ready" else module.state)
        return ComponentHealth(level=own.level, reason=reason, role=own.role)
    reason = f"{module.state}: {module.reason}" if module.reason else module.state
    if module.state == _LOOPING or now - module.unready_at > _PATIENCE_S:
        return ComponentHealth(level=Level.ERROR, reason=reason, role=own.role)
    return ComponentHealth(level=Level.WARN, reason=reason, role=own.role)


def _lock_reason(seen: Seen) -> str:
    lock = seen.lock
    if lock is None:
        return "the lock state is not known yet"
    if not lock.initialized:
        return "locked: no password was set yet"
    if not lock.locked:
        return ""
    return f"locked: {seen.locked_because}" if seen.locked_because else "locked"

"""Which public port each listener gets. Pure; the control store makes the choice exclusive (`ports/<proto>-<n>`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from piccolod.errors import Conflict, Problem
from services.apps.manifest import Manifest


class PortDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `ports/<proto>-<n>`: whose it is."""

    app: str
    listener: str


def document_id(port: int) -> str:
    return f"tcp-{port}"


def port_of(document: str) -> int:
    return int(document.partition("-")[2])


def assign(
    manifest: Manifest,
    owners: Mapping[int, str],
    current: Mapping[str, int],
    pool: range,
    free_here: Callable[[int], bool],
) -> dict[str, int]:
    """listener -> port. `owners` says which app has which port; `current` is what this app has now.

    A listener that keeps its name keeps its port. Automatic ones take the lowest port of the pool that no app has and
    that nobody listens on here. Raises Conflict naming each port that cannot be had.
    """
    others = {port for port, app in owners.items() if app != manifest.name}
    wanted = {listener.name: listener.public_port for listener in manifest.listeners}
    problems = tuple(
        Problem(f"listeners[{index}].public_port", f"port {listener.public_port} belongs to app {owners[listener.public_port]}")
        for index, listener in enumerate(manifest.listeners)
        if isinstance(listener.public_port, int) and listener.public_port in others
    )
    if problems:
        raise Conflict("; ".join(problem.message for problem in problems), hint="choose another, or `auto`", errors=problems)
    assigned = {name: port for name, port in wanted.items() if isinstance(port, int)}
    for name, port in wanted.items():
        kept = current.get(name)
        if port == "auto" and kept is not None and kept in pool and kept not in others and kept not in assigned.values():
            assigned[name] = kept
    candidates = (port for port in pool if port not in others and port not in assigned.values())
    for name in wanted:
        if name not in assigned:
            found = next((port for port in candidates if free_here(port)), None)
            if found is None:
                raise Conflict(f"no public port is free in {pool.start}-{pool.stop - 1}", hint="widen [apps] public_ports")
            assigned[name] = found
    return {name: assigned[name] for name in wanted}

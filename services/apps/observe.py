"""Looks at everything that the plan of one app depends on. Reads only; asks for no more than the plan can need."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any, Final

import msgspec

from piccolod import clock
from piccolod.errors import PiccoloError
from piccolod.leadership import leash_table
from services.apps import badge, links, spec
from services.apps.actions import Actions
from services.apps.backoff import Failures
from services.apps.badge import Badge, container_name
from services.apps.bridge import severed
from services.apps.desired import Desired, Version
from services.apps.health import Health
from services.apps.node import Node
from services.apps.podman_status import Status, status_of
from services.apps.situation import Container, Image, ImageIs, Situation

_MOUNT_S: Final = 1.0
_NOBODY: Final = Badge(cluster="", node="", app="", epoch=0, generation=0, token=-1, spec="")


class Look(msgspec.Struct, frozen=True):
    """What memory adds to what can be seen."""

    health: Health | None
    failures: Failures
    trial_since_at: float
    waits_for: tuple[str, ...]
    refusals: int = 0


async def look(node: Node, actions: Actions, memory: Look) -> Situation:
    """Raises Unavailable when podman or volumes does not answer and the answer is needed."""
    desired = actions.stored.desired
    found = await node.podman.inspect(container_name(desired.name))
    container = None if found is None else container_of(node, desired.name, found)
    if container is not None and container.status is Status.EXITED and await asyncio.to_thread(_is_cleaned_up, container.id):
        container = msgspec.structs.replace(container, status=Status.STOPPING)
    digest = spec.digest(desired.current, desired.restarts)
    trial = desired.candidate
    trial_digest = spec.digest(trial, desired.restarts) if trial is not None else ""
    runs_current = container is not None and container.badge.spec == digest
    runs_trial = container is not None and trial is not None and container.badge.spec == trial_digest
    return Situation(
        now=clock.now(),
        boot_id=node.boot_id,
        locked=node.locked,
        term=node.term(desired.name),
        container=container,
        guarded=bool(node.guarded(desired.name)),
        digest=digest,
        trial_digest=trial_digest,
        image=await _image(node, desired.current, known=runs_current),
        trial_image=await _image(node, trial, known=runs_trial) if trial is not None else Image(ImageIs.PRESENT),
        attached=frozenset(await _attached(actions, desired, container)),
        health=memory.health,
        failures=memory.failures,
        trial_since_at=memory.trial_since_at,
        spoiled=await _spoiled(desired, container),
        waits_for=memory.waits_for,
        severed=await _severed(node, desired, container),
        refusals=memory.refusals,
        clustered=node.clustered,
        leader=node.leaders.get(desired.name),
        heirs=node.could_another(desired.name),
        purged=actions.purged,
        barred=f"its manifest says never on {node.name}" if node.name in desired.current.manifest.cluster.never else "",
        writes=node.writes,
    )


def container_of(node: Node, app: str, found: dict[str, Any]) -> Container:
    state = found["State"]
    pid = int(state.get("Pid") or 0)
    network = (found.get("NetworkSettings", {}).get("Networks") or {}).get(spec.network_name(app)) or {}
    labels = (found.get("Config") or {}).get("Labels")
    mark = badge.read(labels) or _NOBODY
    entry = leash_table.read_entry(node.module.paths.leash / f"{found['Id']}{leash_table.SUFFIX}")
    return Container(
        id=str(found["Id"]),
        status=_status(found, pid),
        pid=pid,
        badge=mark if mark.node == node.name and mark.app == app else _NOBODY,
        armed=entry is not None
        and (entry.token, entry.epoch, entry.pid, entry.boot_id) == (mark.token, mark.epoch, pid, node.boot_id),
        exit_code=int(state.get("ExitCode") or 0),
        address=str(network.get("IPAddress") or ""),
    )


def _status(found: dict[str, Any], pid: int) -> Status:
    """podman notices an exit a little later than the kernel does."""
    status = status_of(found)
    return Status.STOPPING if status is Status.RUNNING and not _lives(pid) else status


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def _is_cleaned_up(container_id: str) -> bool:
    """Whether the monitor of a run that ended is still at it.

    It becomes podman's cleanup, which takes the network of a container that is initialised anew before it is through
    (podman 4.3, libpod: Cleanup accepts an initialised container). Found by its arguments, so that a restart of this module
    knows it too.
    """
    name = container_id.encode()
    for folder in os.listdir("/proc"):
        if folder.isdigit():
            try:
                with open(f"/proc/{folder}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
            except OSError:
                continue
            if name in words and words[0].rpartition(b"/")[2] in (b"conmon", b"podman"):
                return True
    return False


async def _spoiled(desired: Desired, container: Container | None) -> str:
    """A volume whose encrypting process died is attached again beside the container, which keeps the dead mount."""
    volumes = desired.current.manifest.storage.persistent
    if container is None or container.status is not Status.RUNNING or not volumes:
        return ""
    for name, volume in volumes.items():
        try:
            async with asyncio.timeout(_MOUNT_S):
                await asyncio.to_thread(os.statvfs, f"/proc/{container.pid}/root{volume.container}")
        except TimeoutError:
            continue  # frozen, not dead: it may go on
        except OSError as error:
            if error.errno in (errno.ENOTCONN, errno.EIO):
                return f"the mount of volume {name} is dead"
    return ""


async def _severed(node: Node, desired: Desired, container: Container | None) -> str:
    if container is None or container.status is not Status.RUNNING:
        return ""
    return severed(await asyncio.to_thread(links.look, node.bridge(desired.name)), container.address)


async def _image(node: Node, version: Version, *, known: bool) -> Image:
    """A container of the version proves that its image is here."""
    if known:
        return Image(ImageIs.PRESENT, version.image_id)
    return await node.images.look(version)


async def _attached(actions: Actions, desired: Desired, container: Container | None) -> dict[str, str]:
    versions = (desired.current, desired.previous, desired.candidate)
    if not any(version.manifest.is_stateful for version in versions if version is not None):
        return {}
    try:
        return await actions.volumes()
    except PiccoloError:
        if container is not None and container.status is Status.RUNNING and desired.running:
            # What runs has its volumes; a volumes module that restarts takes nobody's disk.
            return dict.fromkeys(desired.current.manifest.storage.persistent, "")
        raise

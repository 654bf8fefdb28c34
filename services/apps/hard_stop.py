"""How fast this machine ends a container: podman's own, killed as the guards kill, until the kernel proves that it is gone.

Its root holds nothing but the host's programs, read-only, for a node has no image of its own. It has no network, and no app.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from piccolod import clock
from piccolod.errors import Failed, PiccoloError, Unavailable
from piccolod.leadership.grip import Grip, process_start
from piccolod.module import Caller
from piccolod.protocol.apps import HardStop, MeasureHardStop
from services.apps.actions import cgroup_of
from services.apps.node import Node
from services.apps.podman import Podman

_LABEL: Final = "io.piccolo.measures"
_KILLS: Final = 3
_GONE_S: Final = 5.0
_LOOK_S: Final = 0.0005
_PROGRAMS: Final = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")


class HardStops:
    def __init__(self, node: Node, root: Path) -> None:
        self._node = node
        self._root = root
        self._turn = asyncio.Lock()

    def serve(self) -> None:
        self._node.module.serve(MeasureHardStop, self._measure)

    async def _measure(self, request: MeasureHardStop, caller: Caller) -> HardStop:
        sleep = shutil.which("sleep", path="/usr/bin:/bin")
        if sleep is None:
            raise Unavailable("there is no `sleep` on this host to run in a container")
        async with self._turn:
            podman = self._node.podman
            for left in await podman.containers(f"{_LABEL}={self._node.name}"):  # by a crash
                await podman.remove(str(left["Id"]))
            mounts = await asyncio.to_thread(_make_root, self._root)
            try:
                took = [await _end_one(podman, _spec(self._node.name, self._root, mounts, sleep)) for _ in range(_KILLS)]
            finally:
                await asyncio.to_thread(_remove_root, self._root, mounts)
        self._node.module.log.info("measured how fast a container ends", stop_ms=round(max(took) * 1000, 1))
        return HardStop(stop_s=max(took))


async def _end_one(podman: Podman, spec: dict[str, Any]) -> float:
    name = str(spec["name"])
    try:
        await podman.create(spec)
        await podman.start(name)
        found = await podman.inspect(name)
        pid = int(found["State"]["Pid"]) if found is not None else 0
        if not pid:
            raise Failed("a container that only sleeps has ended by itself")
        return await asyncio.to_thread(_kill, pid)
    finally:
        with suppress(PiccoloError):  # the next one removes what is left
            await podman.remove(name)


def _kill(pid: int) -> float:
    try:
        started = process_start(pid)
    except ProcessLookupError as error:
        raise Failed("a container that only sleeps has ended by itself") from error
    with Grip(pid, started, cgroup_of(pid), clock.boot_id()) as grip:
        began_at = clock.now()
        grip.kill()
        while not grip.proven_dead():
            if clock.now() - began_at > _GONE_S:
                raise Failed(
                    f"a killed container is still there after {_GONE_S:g} s", hint="this machine cannot lead in a cluster"
                )
            time.sleep(_LOOK_S)
        return clock.now() - began_at


def _spec(node: str, root: Path, mounts: list[str], sleep: str) -> dict[str, Any]:
    return {
        "name": f"piccolo-measure-{secrets.token_hex(4)}",
        "rootfs": str(root),
        "command": [sleep, "60"],
        "netns": {"nsmode": "none"},
        "cap_drop": ["ALL"],
        "no_new_privileges": True,
        "labels": {_LABEL: node},
        "log_configuration": {"driver": "k8s-file"},
        "mounts": [
            {"destination": f"/{name}", "type": "bind", "source": f"/{name}", "options": ["ro", "nosuid", "nodev", "rprivate"]}
            for name in mounts
        ],
    }


def _make_root(root: Path) -> list[str]:
    """The host's folders of programs by their names: which of them are to be mounted. Links are links here too."""
    root.mkdir(mode=0o700, exist_ok=True)
    mounts = []
    for name in _PROGRAMS:
        there, here = Path("/", name), root / name
        if there.is_symlink() and not here.is_symlink():
            here.symlink_to(os.readlink(there))
        elif there.is_dir() and not there.is_symlink():
            here.mkdir(exist_ok=True)
            mounts.append(name)
    return mounts


def _remove_root(root: Path, mounts: list[str]) -> None:
    """Nothing that is mounted is walked into: a folder that is not empty stops it."""
    with suppress(OSError):
        for name in mounts:
            (root / name).rmdir()
        shutil.rmtree(root)

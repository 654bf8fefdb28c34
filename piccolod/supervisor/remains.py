"""What a full stop must not leave: containers that `apps` could not end any more, and what is mounted for them.

Straight through the kernel: podman's answers can hang, and what it knows of containers goes with its memory anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from piccolod import clock, podman_conf, tmpfs
from piccolod.config import Config
from piccolod.leadership import leash_table
from piccolod.leadership.leash_table import Entry
from piccolod.supervisor.loop import Loop

# To die, and for podman's monitors to take away what they had mounted for a container: measured 0.01 s and 0.2 s.
KILL_S: Final = 3.0
MONITORS_S: Final = 5.0
_LOOK_S: Final = 0.02
_PID_FILES: Final = "overlay-containers", "btrfs-containers", "vfs-containers"


class Remains:
    def __init__(self, loop: Loop, config: Config, say: Callable[..., None]) -> None:
        self._loop = loop
        self._config = config
        self._paths = config.paths
        self._say = say
        self._ended: Callable[[], None] = lambda: None

    def end_containers(self, ended: Callable[[], None]) -> None:
        """Once nobody starts containers any more: kills what is left of them, then calls `ended`, in any case."""
        found = self._living()
        if not found:
            ended()
            return
        self._ended = ended
        self._say("warning", "killing containers that apps did not end", containers=_names(found))
        self._kill(clock.now() + KILL_S)

    def release(self) -> None:
        """Once podman's service has ended: takes away what is mounted here, and says what it has to leave."""
        if living := self._living():
            self._say("error", "left containers alive, and leashes to guard them", containers=_names(living))
        else:
            if tmpfs.is_mounted(self._paths.app_files):
                tmpfs.unmount(self._paths.app_files, although_open=True)
            podman_conf.release(self._config)
        folders = dict.fromkeys((self._paths.run, self._paths.state))
        if left := sorted({str(point) for folder in folders for point in tmpfs.points_below(folder) if point != folder}):
            self._say("error", "left mounts behind", mounts=",".join(left))

    # --- containers

    def _living(self) -> list[Entry]:
        """Those under guard, and those that podman has made and that are not, or not yet."""
        guarded = leash_table.read(self._paths.leash).values()
        known = {entry.container for entry in guarded}
        others = [entry for entry in self._made() if entry.container not in known]
        return leash_table.alive((*guarded, *others))

    def _made(self) -> Iterator[Entry]:
        for kind in _PID_FILES:
            for file in (self._paths.podman_run / kind).glob("*/userdata/pidfile"):
                container = file.parent.parent.name
                with suppress(OSError, ValueError):
                    pid = int(file.read_text())
                    entry = leash_table.entry_of(container, "none", 0, 0, pid=pid)
                    # Opened by its pid alone, which may be somebody else's by now: a container's cgroup bears its name.
                    if container in Path(f"/proc/{pid}/cgroup").read_text():
                        yield entry

    def _kill(self, until: float) -> None:
        living = self._living()
        for entry in living:
            leash_table.kill(entry)
        if living and clock.now() < until:
            self._loop.after(_LOOK_S, lambda: self._kill(until))
            return
        if living:
            self._say("error", "containers do not die", containers=_names(living))
        else:
            self._say("info", "killed the containers")
        for entry in leash_table.read(self._paths.leash).values():
            if leash_table.proven_dead(entry):
                leash_table.remove(self._paths.leash, entry)
        self._let_monitors_clear(clock.now() + MONITORS_S)

    def _let_monitors_clear(self, until: float) -> None:
        """podman's monitor of each container unmounts its root and its shared memory, and undoes its network."""
        held = podman_conf.container_mounts(self._config)
        if held and clock.now() < until:
            self._loop.after(_LOOK_S, lambda: self._let_monitors_clear(until))
            return
        if held and not self._living():
            self._say("warning", "unmounting what podman's monitors left", mounts=",".join(map(str, held)))
            for point in reversed(held):
                tmpfs.unmount(point, although_open=True)
        self._ended()


def _names(entries: list[Entry]) -> str:
    return ",".join(entry.container[:12] for entry in entries)

"""What podman knows of containers, in memory; images and layers stay on the disk.

podman's database and the folder of each container hold environment, commands, secrets given as `env`, and what apps print.
All of that and podman's run folder lie in one tmpfs, to which links lead from podman's storage: where the tmpfs is not
mounted they lead nowhere, and no podman can write such things to the disk. It lives as long as containers can, over
restarts of piccolod and of podman's service. What is in it can be made again from the control store, which is sealed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from piccolod import podman_layers, tmpfs
from piccolod.errors import Failed

# A limit, not a reservation: of each container it holds some 20 KiB, and at most 10 MiB of what the app printed.
_SIZE: Final = "50%"
# Written last: without it the tmpfs was left by who died while making it, and no container can have been made yet.
_MARK: Final = "entered"


@dataclass(frozen=True, slots=True)
class Place:
    """Of one node. `ours`: the storage is piccolod's alone, and not a folder that somebody chose."""

    memory: Path
    root: Path
    driver: str
    ours: bool

    @property
    def containers(self) -> Path:
        return self.memory / "kept" / f"{self.driver}-containers"

    @property
    def links(self) -> dict[Path, Path]:
        """In podman's storage -> in memory. `libpod` is the database of podman 4, `db.sql` that of podman 5."""
        database = self.memory / "kept" / "libpod"
        return {
            self.root / "libpod": database,
            self.root / "db.sql": database / "db.sql",
            self.root / self.containers.name: self.containers,
        }

    @property
    def is_entered(self) -> bool:
        return tmpfs.is_mounted(self.memory) and (self.memory / _MARK).exists()


def enter(place: Place, podman: Callable[[Sequence[str]], None], say: Callable[[str], None]) -> None:
    """Makes the tmpfs, and removes from the disk what containers of an earlier one, or of an earlier piccolod, left there.

    `podman` runs it on this storage with the arguments, bounded in time, and raises Failed. Only while nothing else uses it.
    Raises Failed where the disk holds what is not ours to remove.
    """
    if place.is_entered:
        return
    # In a storage that somebody chose, layers that no image uses can be somebody's until our links have kept others out.
    knows_layers = place.ours or any(link.is_symlink() for link in place.links)
    if not tmpfs.is_mounted(place.memory):
        _leave_the_disk(place, podman, say)
        tmpfs.mount(place.memory, _SIZE)
    for link, target in place.links.items():
        (target.parent if target.suffix else target).mkdir(mode=0o700, parents=True, exist_ok=True)
        if not link.is_symlink() or link.readlink() != target:
            _remove(link)  # a monitor of a container that was just removed can have made it again
            link.symlink_to(target)
    if knows_layers:
        _remove_orphans(place, podman, say)
    (place.memory / _MARK).touch()


def leave(memory: Path) -> None:
    """Unmounts it, once no container runs; else it stays, and the next `enter` adopts it."""
    if tmpfs.points_below(memory) == [memory]:
        # podman's monitors of a container's last commands may live for seconds more, with their files open.
        tmpfs.unmount(memory, although_open=True)


def _leave_the_disk(place: Place, podman: Callable[[Sequence[str]], None], say: Callable[[str], None]) -> None:
    """Earlier versions kept it there: their containers are ended, their records removed. Images stay."""
    folder = place.root / place.containers.name
    if folder.is_dir() and not folder.is_symlink():
        if any(child.is_dir() for child in folder.iterdir()):
            if not place.ours:
                raise Failed(
                    f"{folder} holds containers on the disk, in clear",
                    hint=f"remove them (`podman --root {place.root} rm --all`), or choose another folder as podman.root",
                )
            say("removes what an earlier version kept of containers on the disk")
        if tmpfs.points_below(folder):  # each running container has its shared memory mounted there
            podman(("rm", "--all", "--force", "--time", "10"))
    database = [link for link in place.links if link != folder and link.exists() and not link.is_symlink()]
    if database and not place.ours:
        raise Failed(
            f"{database[0]} is the database of another podman",
            hint=f"empty the storage (`podman --root {place.root} system reset`), or choose another folder as podman.root",
        )
    for path in (*place.links, *place.root.glob("db.sql-*"), *place.memory.iterdir()):
        _remove(path)


def _remove_orphans(place: Place, podman: Callable[[Sequence[str]], None], say: Callable[[str], None]) -> None:
    """Read-write layers of containers that the last tmpfs took along, removed by podman itself."""
    try:
        orphans = _orphans(place)
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"leaves unused layers where they are: {error}")
        return
    if not orphans:
        return
    (place.containers / "containers.json").write_text(json.dumps(podman_layers.claims(orphans)), encoding="utf-8")
    try:
        podman(("rm", "--force", *orphans))
    except Failed as error:
        say(f"some of {len(orphans)} unused layers stay until the next boot: {error.detail}")
    else:
        say(f"removed {len(orphans)} layers of containers that are no more")


def _orphans(place: Place) -> list[str]:
    images = place.root / f"{place.driver}-images" / "images.json"
    if not images.exists():  # without it every layer would look unused
        return []
    folder = place.root / f"{place.driver}-layers"
    found = [_records(file) for file in (folder / "layers.json", folder / "volatile-layers.json") if file.exists()]
    return podman_layers.orphans([layer for layers in found for layer in layers], _records(images))


def _records(file: Path) -> list[dict[str, Any]]:
    found = json.loads(file.read_bytes() or b"[]")
    if not isinstance(found, list):
        raise ValueError(f"{file} is no list")
    return found


def _remove(path: Path) -> None:
    """A file, a link or a folder with all that is in it; nothing when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

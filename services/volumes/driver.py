"""The volumes of this node: made, attached, detached, changed, removed. Every call blocks, with deadlines.

One caller at a time a volume. Killed at any instruction, the next life sees with `look` what there is and goes on from it:
each step leaves a state that has a name in `plan.State`.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from piccolod import clock
from piccolod.errors import Busy, Conflict, DeadlineExceeded, Failed
from piccolod.paths import Paths
from piccolod.units import format_size
from services.volumes import folder as folders
from services.volumes import gocryptfs, image, mounts, process
from services.volumes.folder import CIPHER, Description, Folder
from services.volumes.journal import Journal, Record
from services.volumes.plan import Body, Change, Seen, Shape, State, VolumeId, change, state_of

_MOUNT_S: Final = 10.0
_READY_LOOK_S: Final = 0.002
_EXIT_S: Final = 5.0
_COPIES_S: Final = 2.0
_COPY_S: Final = 3600.0

# Raises when the term that asked is over.
Permit = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Look:
    """A volume as it is now; `record` is its living gocryptfs."""

    state: State
    record: Record | None
    device: str


class Driver:
    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self.journal = Journal(paths.volume_journal, clock.boot_id())

    # --- what there is

    def volumes(self) -> list[VolumeId]:
        return folders.volumes_in(self._paths.volumes)

    def gone(self) -> list[VolumeId]:
        return folders.gone_in(self._paths.volumes)

    def exists(self, volume: VolumeId) -> bool:
        return self._folder(volume).exists()

    def describe(self, volume: VolumeId) -> Description:
        return self._folder(volume).describe()

    def mount_point(self, volume: VolumeId) -> Path:
        return self._paths.mounts / str(volume)

    def look(self, volume: VolumeId) -> Look:
        """What is attached, by the kernel's word; costs about a millisecond and touches no mount."""
        listed = mounts.here()
        plain = mounts.at(self.mount_point(volume), listed)
        record = self._living(volume, plain)
        seen = Seen(
            process=record.pid if record else 0,
            mounted=plain is not None,
            image_mounted=mounts.at(self._image_point(volume), listed) is not None,
        )
        state = state_of(seen, was_mounted=bool(record and record.device))
        return Look(state, record, plain.device if plain else record.device if record else "")

    def used_bytes(self, volume: VolumeId) -> int:
        """What the volume holds; for a detached image what it takes on the disk."""
        point = self._image_point(volume)
        if mounts.at(point) is not None:
            return image.used_bytes(point)
        return folders.stored_bytes(self._folder(volume).body)

    def stored_bytes(self, volume: VolumeId) -> int:
        return folders.stored_bytes(self._folder(volume).body)

    # --- existence and size

    def create(self, volume: VolumeId, shape: Shape, key: bytes) -> None:
        """An empty volume. Killed before the end, there is none."""
        folder = self._folder(volume)
        with folder.making() as new:
            content = new / f"1.{Body.TREE}"
            (content / CIPHER).mkdir(parents=True, mode=0o700)
            gocryptfs.init(content / CIPHER, key)
            if shape.body is Body.IMAGE:
                image.make(new / f"1.{Body.IMAGE}", content, shape.limit_bytes, keep=())
                shutil.rmtree(content)
            folder.commit(_description(shape, 1), where=new)

    def reshape(self, volume: VolumeId, wished: Shape) -> None:
        """The volume gets another limit. Raises Busy for what needs it detached, Conflict when it holds more."""
        folder = self._folder(volume)
        now = folder.describe()
        step = change(now.shape, wished)
        if step in (Change.NOTE, Change.GROW):
            folder.commit(_description(wished, now.number, now.built_bytes))
        if step is Change.GROW and image.fill_mounted(folder.body, self._image_point(volume), wished.limit_bytes):
            folder.commit(_description(wished, now.number))
        if step is Change.REBUILD:
            self._rebuild(folder, now, wished)

    def _rebuild(self, folder: Folder, now: Description, wished: Shape) -> None:
        if self.look(folder.id).state not in (State.DETACHED, State.HALF):
            raise Busy(f"volume {folder.id} is attached: its limit cannot be lowered now", hint="stop the app first")
        next_one = _description(wished, now.number + 1)
        with folder.locked() as lock:
            folder.drop_rests()
            content = self._open_body(folder, lock)
            held = folders.stored_bytes(content / CIPHER)
            if wished.body is Body.IMAGE and held > wished.limit_bytes:
                raise Conflict(
                    f"volume {folder.id} holds {format_size(held)}, more than {format_size(wished.limit_bytes)}",
                    hint="delete files in the app first, or choose a larger size_limit",
                )
            body = folder.path / next_one.file
            if wished.body is Body.IMAGE:
                image.make(body, content, wished.limit_bytes, keep=(lock,))
            else:
                body.mkdir(mode=0o700)
                process.run("cp", "-a", str(content / CIPHER), str(body), timeout_s=_COPY_S, keep=(lock,))
                process.run("sync", "-f", str(body), timeout_s=_COPY_S, keep=(lock,))
            image.unmount(self._image_point(folder.id), keep=(lock,))
            folder.commit(next_one)
            folder.drop_rests()

    # --- attach and detach

    def attach(self, volume: VolumeId, token: int, key: bytes | None, permit: Permit) -> Record:
        """Plain text appears at the mount point. `permit` is asked before and after the mount. Idempotent.

        `key` None: the caller saw it attached.

        Raises Busy while anybody still has an older mount of the volume: there is never a second writer.
        """
        folder = self._folder(volume)
        folder.describe()
        permit()
        look = self._settled(volume)
        if look.state is State.ATTACHED and look.record is not None:
            return self._keep(look.record, token, look.device)
        if look.state is State.HELD:
            raise self._held(volume, look)
        if key is None:
            raise Busy(f"volume {volume} was detached this very moment", hint="try again")
        with folder.locked() as lock:
            # With the lock it is certain that nobody serves what may still be mounted.
            mounts.detach_dead(self.mount_point(volume))
            return self._mount(folder, lock, token, key, permit)

    def detach(self, volume: VolumeId) -> None:
        """The plain text is gone and nobody can write to the volume. Idempotent. Raises Busy with who uses it."""
        look = self.look(volume)
        point = self.mount_point(volume)
        if look.state is State.STARTING and look.record is not None:
            self._abandon(volume, look.record.pid, look.record.started)
        elif look.state is State.ATTACHED and look.record is not None:
            self._keep(look.record, look.record.token, look.device)
            if users := self._lasting_users(look.device, point):
                raise _busy(volume, users)
            mounts.unmount(point)
        elif look.state is State.DEAD:
            mounts.detach_dead(point)
        if look.record is not None and not process.wait_gone(look.record.pid, look.record.started, _EXIT_S):
            raise self._held(volume, look)
        if self._folder(volume).path.is_dir():
            with self._folder(volume).locked() as lock:
                self._clear(volume, lock)

    def set_aside(self, volume: VolumeId) -> None:
        """Purge, first step: the volume does not exist any more. Raises Busy while it is attached."""
        if self.look(volume).state not in (State.DETACHED, State.HALF, State.DEAD):
            raise Busy(f"volume {volume} is attached", hint="stop the app first")
        self.detach(volume)
        folder = self._folder(volume)
        with folder.locked():
            folder.set_aside()

    def remove_gone(self, volume: VolumeId) -> None:
        """Purge, last step."""
        self._folder(volume).remove_gone()

    def drop_half_made(self) -> None:
        folders.drop_half_made(self._paths.volumes)

    # --- parts

    def _mount(self, folder: Folder, lock: int, token: int, key: bytes, permit: Permit) -> Record:
        volume = folder.id
        point = self.mount_point(volume)
        folder.drop_rests()
        content = self._open_body(folder, lock)
        for directory in (point, self._paths.volume_journal):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        spawned = gocryptfs.spawn(content / CIPHER, point, lock, self._log(volume))
        record = Record(
            app=volume.app, volume=volume.volume, pid=spawned.pid, started=spawned.started, boot_id=clock.boot_id(), token=token
        )
        try:
            self.journal.write(record)
            permit()
            spawned.give(key)
            device = self._wait_served(volume, spawned.pid, spawned.started)
            permit()
            return self._keep(record, token, device)
        except BaseException:
            spawned.close()
            self._abandon(volume, spawned.pid, spawned.started)
            self._clear(volume, lock)
            raise

    def _wait_served(self, volume: VolumeId, pid: int, started: int) -> str:
        """The device of the mount once it is served. Raises Failed when gocryptfs ended, DeadlineExceeded when it is mute."""
        until = time.monotonic() + _MOUNT_S
        while time.monotonic() < until:
            served = gocryptfs.ready(self._log(volume))
            plain = mounts.at(self.mount_point(volume)) if served else None
            if plain is not None:
                return plain.device
            if process.wait_gone(pid, started, _READY_LOOK_S):
                raise gocryptfs.failure(self._log(volume), str(volume))
        raise DeadlineExceeded(f"gocryptfs did not mount volume {volume} within {_MOUNT_S:.0f} s")

    def _settled(self, volume: VolumeId) -> Look:
        """Waits for what an earlier life began.

        A start has its key and mounts, or never gets one and ends. After an unmount gocryptfs ends in a moment, unless
        somebody else has the volume mounted.
        """
        look = self.look(volume)
        record = look.record
        if record is not None and look.state is State.HELD and not self._others(volume, look):
            process.wait_gone(record.pid, record.started, _EXIT_S)
            return self.look(volume)
        if record is not None and look.state in (State.STARTING, State.ATTACHED) and not record.device:
            try:
                self._keep(record, record.token, self._wait_served(volume, record.pid, record.started))
            except (Failed, DeadlineExceeded):
                self._abandon(volume, record.pid, record.started)
            return self.look(volume)
        return look

    def _living(self, volume: VolumeId, plain: mounts.Mount | None) -> Record | None:
        record = self.journal.read(volume)
        if record is not None and process.alive(record.pid, record.started):
            return record
        if plain is None or record is not None:
            return None
        return self._found(volume)  # the journal was lost, the mount is there: somebody serves it

    def _found(self, volume: VolumeId) -> Record | None:
        wanted = os.fsencode(self.mount_point(volume))
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                argv = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            except OSError:
                continue
            if argv[0].endswith(b"gocryptfs") and argv[-1] == wanted and (started := process.start_time(int(entry.name))):
                return Record(
                    app=volume.app, volume=volume.volume, pid=int(entry.name), started=started, boot_id=clock.boot_id(), token=0
                )
        return None

    def _keep(self, record: Record, token: int, device: str) -> Record:
        kept = Record(
            app=record.app,
            volume=record.volume,
            pid=record.pid,
            started=record.started,
            boot_id=record.boot_id,
            token=token,
            device=device,
        )
        if kept != self.journal.read(record.id):
            self.journal.write(kept)
        return kept

    def _abandon(self, volume: VolumeId, pid: int, started: int) -> None:
        """Ends a gocryptfs whose mount nobody has been told of."""
        process.kill(pid, started, signal.SIGKILL)
        if not process.wait_gone(pid, started, _EXIT_S / 5):
            mounts.abort(self.mount_point(volume))
        if not process.wait_gone(pid, started, _EXIT_S):
            raise Failed(f"gocryptfs of volume {volume} (pid {pid}) cannot be killed", hint="the disk may be frozen")
        mounts.detach_dead(self.mount_point(volume))

    def _clear(self, volume: VolumeId, lock: int) -> None:
        """No process and no mount of plain text is left: the rest goes.

        Removing a mount point takes the mount from every other namespace too (Linux 3.18): the image is free then.
        """
        image.unmount(self._image_point(volume), keep=(lock,))
        self.journal.forget(volume)
        for point in (self.mount_point(volume), self._image_point(volume)):
            if point.is_dir():
                point.rmdir()

    def _held(self, volume: VolumeId, look: Look) -> Busy:
        users = self._others(volume, look)
        return _busy(volume, users or [f"gocryptfs itself (pid {look.record.pid if look.record else 0}), which does not end"])

    def _lasting_users(self, device: str, point: Path) -> list[str]:
        """Who else has it mounted, and not only for the moment in which any container that starts copies our mounts."""
        until = time.monotonic() + _COPIES_S
        while (users := mounts.other_users(device, point)) and time.monotonic() < until:
            time.sleep(0.05)
        return users

    def _others(self, volume: VolumeId, look: Look) -> list[str]:
        return mounts.other_users(look.device, self.mount_point(volume)) if look.device else []

    def _open_body(self, folder: Folder, lock: int) -> Path:
        """The folder that holds the ciphertext, the image mounted where it is one."""
        description = folder.describe()
        body = folder.path / description.file
        if description.shape.body is Body.TREE:
            return body
        point = self._image_point(folder.id)
        if description.built_bytes < description.limit_bytes and mounts.at(point) is None:
            image.fill(body, description.limit_bytes, keep=(lock,))
            folder.commit(_description(description.shape, description.number))
        image.mount(body, point, keep=(lock,))
        return point

    def _folder(self, volume: VolumeId) -> Folder:
        return Folder(self._paths.volumes, volume)

    def _image_point(self, volume: VolumeId) -> Path:
        return self._paths.volume_journal / f"{volume}.cipher"

    def _log(self, volume: VolumeId) -> Path:
        return self._paths.volume_journal / f"{volume}.log"


def _description(shape: Shape, number: int, built_bytes: int = -1) -> Description:
    built = shape.limit_bytes if built_bytes < 0 else built_bytes
    return Description(body=shape.body, number=number, limit_bytes=shape.limit_bytes, built_bytes=built, warning=shape.warning)


def _busy(volume: VolumeId, users: list[str]) -> Busy:
    return Busy(f"volume {volume} is in use by {', '.join(users[:5])}", hint="stop what uses it, then try again")

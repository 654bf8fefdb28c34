"""Files that containers see and that must never touch a disk: secrets and app_config. One tmpfs, a folder an app.

Also what is wanted of each running app, so that a restart of this module on a locked node goes on minding it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from piccolod import tmpfs
from piccolod.errors import Failed, Invalid
from services.apps.desired import Desired, from_body, to_body

_SIZE: Final = "64m"
_DESIRED: Final = "desired"


class AppFiles:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, app: str, secrets: Mapping[str, bytes], app_config: Any) -> None:
        """Replaces what the app is given. Raises Failed when there is no memory file system for it, or no room in it."""
        self._mount()
        folder = self._folder / app
        (folder / "secrets").mkdir(mode=0o755, parents=True, exist_ok=True)
        # The mounts of a container lead here whatever its user; the folder above lets nobody of the host in.
        for name, value in secrets.items():
            _write(folder / "secrets" / name, value, 0o444)
        if app_config is not None:
            # JSON is YAML of every version: text that looks like a truth value or a number to YAML 1.1 stays text.
            text = json.dumps(app_config, ensure_ascii=False, indent=2) + "\n"
            _write(folder / "app.yaml", text.encode(errors="surrogateescape"), 0o444)

    def remember(self, desired: Desired) -> None:
        self._mount()
        folder = self._folder / desired.name
        folder.mkdir(mode=0o755, exist_ok=True)
        _write(folder / _DESIRED, msgspec.json.encode(to_body(desired)), 0o600)

    def remembered(self) -> list[Desired]:
        """The apps that ran here when they were last looked at."""
        found = []
        for file in sorted(self._folder.glob(f"*/{_DESIRED}")):
            try:
                found.append(from_body(msgspec.json.decode(file.read_bytes())))
            except (OSError, ValueError, Invalid):
                continue  # half-written or of another version: the document itself comes with the unlock
        return found

    def remove(self, app: str) -> None:
        shutil.rmtree(self._folder / app, ignore_errors=True)
        if tmpfs.is_mounted(self._folder) and not any(self._folder.iterdir()):
            tmpfs.unmount(self._folder)

    def _mount(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not tmpfs.is_mounted(self._folder):
            tmpfs.mount(self._folder, _SIZE)


def _write(file: Path, content: bytes, mode: int) -> None:
    """Readers see the old content or the new one, and a container's mount of the file keeps the one that it began with."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        new.replace(file)
    except OSError as error:
        new.unlink(missing_ok=True)
        hint = "secrets and app_config of all apps have 64 MiB of memory"
        raise Failed(f"{file} cannot be written: {error.strerror}", hint=hint) from error
    finally:
        os.close(fd)

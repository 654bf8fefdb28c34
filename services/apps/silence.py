"""The silence around a lock, kept in `run_dir`: a restart of this module must not bring the apps back in the middle of it.

It is on the file before anything is stopped for it. Of this boot only: a reboot stops everything by itself.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from piccolod import clock
from services.apps import quiet
from services.apps.quiet import NONE, Quiet


class _Kept(msgspec.Struct, frozen=True):
    boot_id: str
    quiet: Quiet


class Silence:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot_id = clock.boot_id()
        self._quiet = quiet.resumed(self._load(), clock.now())

    def holds(self) -> bool:
        return self._quiet.holds(clock.now())

    def begin(self, wish: str, *, locked: bool) -> None:
        self._become(quiet.begun(self._quiet, clock.now(), locked=locked, wish=wish))

    def lock_is(self, locked: bool) -> None:
        self._become(quiet.after_news(self._quiet, clock.now(), locked=locked))

    def call_off(self, wish: str) -> None:
        self._become(quiet.called_off(self._quiet, wish))

    def _become(self, now: Quiet) -> None:
        if now != self._quiet:
            self._quiet = now
            self._keep()

    def _load(self) -> Quiet:
        """What cannot be read is no silence: apps that run at most stay up through a lock, and the lock names them."""
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except (OSError, ValueError):
            return NONE
        return kept.quiet if kept.boot_id == self._boot_id else NONE

    def _keep(self) -> None:
        """Best effort: a run folder that takes no file must not keep anybody from locking."""
        with contextlib.suppress(OSError):
            if self._quiet == NONE:
                self._path.unlink(missing_ok=True)
                return
            new = self._path.with_name(f"{self._path.name}.new")
            new.write_bytes(msgspec.json.encode(_Kept(self._boot_id, self._quiet)))
            os.replace(new, self._path)
